"""The records of an event: what happens, what is measured before, what is known of a layer, what was done to it."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..support import Support


class Update(NamedTuple):
    """What happens at one event."""

    drop_fraction: float = 0.0  # of a layer's blocks that is exchanged
    selectivity: float = math.inf  # the exchange is at most this fraction of the layer's sensed candidates
    step_optimizer: bool = True  # the optimizer steps on this iteration too
    allow_regrow: bool = False  # a block that was just dropped may grow again; its own gradient is its score
    interval: int = 1  # steps since the last event


class Sensing(NamedTuple):
    """What the backward pass of one step measures besides the gradient on the support."""

    fraction: float = 1.0  # of the blocks off the support, drawn without replacement ...
    # ... or this many in each layer (the name hides a method of tuples that is not needed)
    count: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    fresh: bool = True  # draw new coordinates: this is the first step of a window
    decay: float = 0.0  # of the moving average over the window
    active: bool = False  # smooth the gradient on the support as well
    flow: bool = False  # measure mean squares of input and output gradient, and draw coordinates by their product
    stream: bool = False  # measure all blocks, and keep only as many as can grow: nothing has the dense size


class LayerState(NamedTuple):
    """What an event knows of one layer."""

    s: Support
    w: Tensor  # values on the support, (n,) or (n, h, w)
    g: Tensor | None  # smoothed gradient on the support; never None where ``Sensing(active=True)`` asked for it
    ids: Tensor  # sensed candidates, sorted, (m,) int64
    h: Tensor  # their smoothed gradient, (m,) or (m, h, w)
    size: int  # blocks that this layer should have after the event
    start: int  # blocks that it had when training began
    lookahead: float  # lr / (1 - momentum) times the interval: how far a weight moves until the next event
    strongest: Callable[[int, int], tuple[Tensor, Tensor]] | None = None  # streamed: (k, ties) -> (ids, gradients)
    ties: int = 0  # decides between equal scores at this event: see :func:`~gossamer.rewire`
    has_gradient: bool = True  # False: no backward pass since the last event; the event leaves the layer alone

    @property
    def sensed(self) -> int:
        """Blocks off the support that were measured."""
        return self.ids.numel() if self.strongest is None else self.s.total - self.s.n


class Outcome(NamedTuple):
    """What an event did to one layer."""

    support: Support
    dropped: int
    grown: int
    sensed: int = 0  # blocks off the support that were measured: ``grown`` should be a small part of them
