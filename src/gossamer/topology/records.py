"""The records of an event: what it does, what is measured before it, the state of a layer, the outcome for a layer."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..support import Support


class Update(NamedTuple):
    """What one event does."""

    drop_fraction: float = 0.0  # the fraction of a layer's blocks that is exchanged
    selectivity: float = math.inf  # the exchange is at most this fraction of the layer's sensed candidates
    step_optimizer: bool = True  # the optimizer steps on this iteration too
    allow_regrow: bool = False  # a block that was just dropped may grow again; its gradient is its score
    interval: int = 1  # optimizer steps since the last event


class Sensing(NamedTuple):
    """What the backward pass of one step measures, in addition to the gradient on the support."""

    fraction: float = 1.0  # the fraction of the blocks off the support, drawn without replacement ...
    # ... or this number of blocks in each layer (the name hides a method of tuples that is not used)
    count: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    fresh: bool = True  # draw new blocks: this is the first step of a window
    decay: float = 0.0  # of the moving average over the window
    active: bool = False  # average the gradient on the support too
    flow: bool = False  # measure mean squares of input and output gradient, and draw blocks by their product
    stream: bool = False  # measure all blocks, and keep only as many as can grow: nothing has the dense size


class LayerState(NamedTuple):
    """The state of one layer at an event."""

    s: Support
    w: Tensor  # values on the support, (n,) or (n, h, w)
    g: Tensor | None  # averaged gradient on the support, (n,) or (n, h, w); not None after ``Sensing(active=True)``
    ids: Tensor  # sensed candidates, sorted, (m,) int64
    h: Tensor  # their averaged gradient, (m,) or (m, h, w)
    size: int  # number of blocks after the event
    start: int  # number of blocks at the start of training
    lookahead: float  # lr / (1 - momentum) times the interval: movement until the next event, per unit of gradient
    strongest: Callable[[int, int], tuple[Tensor, Tensor]] | None = None  # streamed: (k, ties) -> (ids, gradients)
    ties: int = 0  # decides between equal scores at this event: see :func:`~gossamer.rewire`
    has_gradient: bool = True  # False: no backward pass since the last event; the event does not change the layer

    @property
    def sensed(self) -> int:
        """The number of blocks off the support that were measured."""
        return self.ids.numel() if self.strongest is None else self.s.total - self.s.n


class Outcome(NamedTuple):
    """The outcome of an event for one layer: its new support, and numbers of blocks."""

    support: Support
    dropped: int
    grown: int
    sensed: int = 0  # blocks off the support that were measured; ``grown`` should be a small part of them
