"""The records of an event: what happens, what is measured before, what an event knows of a layer, what it did to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .._schedules import Events, cosine
from ..support import Support


class Change(NamedTuple):
    """What happens at one event."""

    drop: float = 0.0  # share of a layer's units that is exchanged
    cap: float = math.inf  # ... but at most this share of its sensed candidates (selectivity)
    move: bool = True  # the optimizer steps on this iteration too
    reborn: bool = False  # a unit just dropped may grow again, with its own gradient as score
    interval: int = 1  # steps since the last event


class Sense(NamedTuple):
    """What the backward pass of one step measures besides the gradient on the support."""

    fraction: float = 1.0  # of the units that are not kept, drawn without replacement ...
    count: int | None = None  # ... or this many per layer
    fresh: bool = True  # draw new coordinates (the first step of a window)
    decay: float = 0.0  # of the moving average over the window
    active: bool = False  # smooth the gradient on the support as well
    flow: bool = False  # measure the mean squares of the layer's input and output gradient too, and draw coordinates by their product
    stream: bool = False  # all units, but only as many as can grow survive: nothing of the dense size


@dataclass(frozen=True)
class Annealed:
    """Events with an annealed share of exchanged units; ``last``: one more event at this step, which only brings the size to its end."""

    events: Events
    share: cosine
    move: bool
    reborn: bool
    last: int | None = None
    cap: float = math.inf

    def __call__(self, t: int) -> Change | None:
        if t == self.last:
            return Change(0.0, interval=self.events.gap(t))
        if t not in self.events:
            return None
        return Change(self.share(t), self.cap, self.move, self.reborn, self.events.gap(t))


class Site(NamedTuple):
    """What an event knows of one layer."""

    s: Support
    w: Tensor  # values on the support, (n,) or (n, h, w)
    g: Tensor | None  # smoothed gradient on the support; never None where ``Sense(active=True)`` asked for it
    ids: Tensor  # sensed candidates, sorted, (m,) int64
    h: Tensor  # their smoothed gradient, (m,) or (m, h, w)
    size: int  # units this layer should have after the event
    start: int  # units it had when training began
    lookahead: float  # step size lr / (1 - momentum) times the interval: how far a weight moves until the next event
    strongest: Callable[[int, int], tuple[Tensor, Tensor]] | None = None  # streamed sensing: (k, ties) -> the k strongest (ids, gradients)
    ties: int = 0  # decides between equal scores at this event: see :func:`~gossamer.topology.rewiring.rewire`
    has_gradient: bool = True  # False: no backward pass has reached this layer since the last event, which leaves it alone

    @property
    def sensed(self) -> int:
        """Units off the support that were measured."""
        return self.ids.numel() if self.strongest is None else self.s.total - self.s.n


class Outcome(NamedTuple):
    """What an event did to one layer."""

    support: Support
    dropped: int
    grown: int
    sensed: int = 0  # units off the support that were measured: growth is selective where ``grown`` is a small share of them
