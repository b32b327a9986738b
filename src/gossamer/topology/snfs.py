"""SNFS, sparse networks from scratch, or sparse momentum (Dettmers & Zettlemoyer 2019, arXiv 1907.04840).

    m <- decay m + (1 - decay) dL/dw   over all weights, every step
    every `every` steps, rate_t cosine from `drop_fraction` to 0.005, in each layer l:
    drop the ceil(rate_t n_l) smallest |w|; layers share the regrowth by mean |m| over their active weights:
    grow_l = ceil(share_l * total dropped), at most 0.99 (zeros + dropped), the rest spread evenly;
    grow the largest |m| among zeros

A layer denser than 0.8 with an above-average share drops at most its fraction of zeros. The method costs 2 f_S + f_D
per step, and memory for a dense momentum.

Four things differ from the authors' code. The momentum is measured by sensing, and restarts (with bias correction)
after each event; it equals theirs up to decay^every. The total is exact at every event, so their running adjustment is
not needed. Newborn weights have zero optimizer state instead of the mean momentum. A weight of momentum exactly 0 does
not grow; if such weights would be needed, fewer are dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from .._errors import UsageError, check_fraction
from .._schedules import Events, cosine, is_count, regular, step_of
from .checks import check_common, check_decay, refuse_no_event
from .records import LayerState, Sensing, Update
from .slots import block_norm
from .topology import Topology

LEAST = 0.005  # the drop rate at the end


@dataclass(frozen=True)
class SNFS:
    """SNFS, sparse momentum: as RigL, but a momentum of the whole gradient ranks the candidates, and splits growth
    among layers. It needs dense memory.

    Args:
        stop: events take place before this step: a number of optimizer steps, or a fraction of the run.
        every: optimizer steps between events (in the paper, one epoch).
        drop_fraction: fraction of each layer's blocks that the first event drops; cosine-annealed to 0.005.
        decay: the decay of the momentum, in [0, 1).
        min_fan_in: the least number of incoming blocks of every output unit.
    """

    stop: int | float = 0.75
    every: int = 100
    drop_fraction: float = 0.5
    _: KW_ONLY
    decay: float = 0.9
    min_fan_in: int = 0

    def __post_init__(self) -> None:
        check_fraction("SNFS", "drop_fraction", self.drop_fraction)
        check_common("SNFS", self.stop, self.every, None, self.min_fan_in)
        check_decay("SNFS", self.decay)
        if is_count(self.stop):
            self.resolve()

    def resolve(self, steps: int | None = None) -> Topology:
        """The topology for a run of ``steps`` optimizer steps. Raises UsageError where a setting does not fit them."""
        stop = step_of("SNFS", "stop", self.stop, steps)
        events = regular(self.every, stop)
        refuse_no_event("SNFS", events, stop, self.every)
        return Topology(
            "snfs",
            Rate(events, cosine(max(self.drop_fraction - LEAST, 0.0), stop)),
            Always(events, self.decay),
            n_exchange=exchange_rate,
            allocate=allocate_by_momentum,
            keeps_layer_sizes=False,
            stop=stop,
            min_fan_in=self.min_fan_in,
        )


@dataclass(frozen=True)
class Rate:
    """Events with the drop rate annealed to 0.005."""

    events: Events
    above: cosine

    def __call__(self, t: int) -> Update | None:
        return Update(self.above(t) + LEAST, interval=self.events.gap(t)) if t in self.events else None


@dataclass(frozen=True)
class Always:
    """Senses all blocks at every step until the last event. The average starts again after each event."""

    events: Events
    decay: float

    def __call__(self, t: int) -> Sensing | None:
        if self.events.next(t) is None:
            return None
        return Sensing(fresh=t == 1 or (t - 1) in self.events, decay=self.decay, active=True)


def momentum_shares(layers: Sequence[LayerState]) -> list[float]:
    """Mean momentum magnitude over each layer's active blocks, normalised over layers."""
    means: list[float] = []
    for layer in layers:
        if layer.g is None:
            what = "layers are compared by the gradient on their supports"
            raise UsageError("SNFS", what, remedy="Sensing(active=True)")
        means.append(float(block_norm(layer.g).mean()))
    return [m / (sum(means) or 1.0) for m in means]


def exchange_rate(layers: Sequence[LayerState], update: Update) -> list[int]:
    """ceil(rate n); a nearly dense layer with an above-average share drops at most its fraction of zeros."""
    drops: list[int] = []
    for layer, share in zip(layers, momentum_shares(layers), strict=True):
        zeros, rate = 1 - layer.s.density, update.drop_fraction
        if zeros < 0.2 and share > 1 / len(layers):
            rate = min(rate, zeros)
        drops.append(math.ceil(rate * layer.s.n))
    return drops


def allocate_by_momentum(
    layers: Sequence[LayerState], drops: Sequence[int], grows: Sequence[int], scores: Sequence[Tensor]
) -> list[int]:
    """Regrowth by momentum share, with an upper bound. The remainder (by bounds and rounding) is spread evenly over the
    layers with room."""
    total = sum(grows)
    room: list[int] = []
    for layer, n_drop, n_grow, score in zip(layers, drops, grows, scores, strict=True):
        most = min(int(0.99 * (layer.s.total - layer.s.n + n_drop)), score.numel())
        room.append(max(most, min(n_grow, score.numel())))  # a layer may always regrow as many as it dropped
    if sum(room) < total:  # some layer has nothing to regrow, so the others may grow all their candidates
        room = [score.numel() for score in scores]
    given = [min(math.floor(share * total), r) for share, r in zip(momentum_shares(layers), room, strict=True)]
    while (left := total - sum(given)) > 0:
        open_ = [i for i in range(len(layers)) if given[i] < room[i]]
        each = max(1, left // len(open_))
        for i in open_:
            more = min(each, room[i] - given[i], total - sum(given))
            given[i] += more
    return given
