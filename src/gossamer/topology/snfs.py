"""SNFS, sparse networks from scratch, or sparse momentum (Dettmers & Zettlemoyer 2019, arXiv 1907.04840).

    m <- decay m + (1 - decay) dL/dw   over all weights, every step
    every `every` steps, rate_t cosine from `drop` to 0.005, per layer l:
    drop the ceil(rate_t n_l) smallest |w|; layers share the regrowth by mean |m| over their active weights:
    grow_l = ceil(share_l * total dropped), at most 0.99 (zeros + dropped), the rest spread evenly; grow the largest |m| among zeros

A layer denser than 0.8 with an above-average share drops at most its share of zeros. Cost per step 2 f_S + f_D, and memory for a dense
momentum: the method needs it. Differs from the authors' code: the momentum is the sensed one, restarted (with bias correction) after each
event, equal to theirs up to decay^every; the total is exact at every event, so their running adjustment is not needed; born weights have
zero optimizer state instead of the mean momentum; a momentum of exactly 0 does not grow, and as many fewer are dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .._errors import Unfit, check_count, check_share
from .._schedules import Events, cosine, regular
from .topology import Change, Sense, Site, Topology, norm, refuse_no_event

LEAST = 0.005  # the prune rate at the end


def snfs(stop: int, every: int, drop: float = 0.5, *, decay: float = 0.9, min_fan_in: int = 0) -> Topology:
    """SNFS.

    Args:
        stop: no event at or after this step.
        every: steps between events (the paper: one epoch).
        drop: share of each layer's units dropped at the first event; cosine-annealed to 0.005.
        decay: of the momentum that ranks layers and candidates.
        min_fan_in: incoming units that every output unit keeps.
    """
    check_share("snfs", "drop", drop)
    check_count("snfs", "min_fan_in", min_fan_in, 0)
    if not 0.0 <= decay < 1.0:
        raise Unfit("snfs", "decay of a moving average lies in [0, 1)", got=decay)
    events = regular(every, stop)
    refuse_no_event("snfs", events, stop, every)
    when = Rate(events, cosine(max(drop - LEAST, 0.0), stop))
    slots = {"amount": rate, "share": by_momentum, "keeps_layer_sizes": False}
    return Topology("snfs", when, Always(events, decay), **slots, stop=stop, min_fan_in=min_fan_in)


@dataclass(frozen=True)
class Rate:
    """Events with the prune rate annealed to 0.005."""

    events: Events
    above: cosine

    def __call__(self, t: int) -> Change | None:
        return Change(self.above(t) + LEAST, interval=self.events.gap(t)) if t in self.events else None


@dataclass(frozen=True)
class Always:
    """Sense everything at every step until the last event; start anew after each."""

    events: Events
    decay: float

    def __call__(self, t: int) -> Sense | None:
        if self.events.next(t) is None:
            return None
        return Sense(fresh=t == 1 or (t - 1) in self.events, decay=self.decay, active=True)


def shares(sites: Sequence[Site]) -> list[float]:
    """Mean momentum magnitude over each layer's active units, normalised over layers."""
    means = []
    for site in sites:
        if site.g is None:
            raise Unfit("snfs", "layers are compared by the gradient on their supports", remedy="Sense(active=True)")
        means.append(float(norm(site.g).mean()))
    return [m / (sum(means) or 1.0) for m in means]


def rate(sites: Sequence[Site], change: Change) -> list[int]:
    """ceil(rate n); a nearly dense layer with an above-average share drops at most its share of zeros."""
    drops = []
    for site, share in zip(sites, shares(sites), strict=True):
        zeros = 1 - site.s.density
        drops.append(math.ceil((min(change.drop, zeros) if zeros < 0.2 and share > 1 / len(sites) else change.drop) * site.s.n))
    return drops


def by_momentum(sites: Sequence[Site], drops: Sequence[int], grows: Sequence[int], scores: Sequence[Tensor]) -> list[int]:
    """Regrowth by momentum share, capped; what is cut off by caps or rounding is spread evenly over the layers with room."""
    total = sum(grows)
    room = [min(int(0.99 * (site.s.total - site.s.n + d)), score.numel()) for site, d, score in zip(sites, drops, scores, strict=True)]
    room = [max(r, min(g, score.numel())) for r, g, score in zip(room, grows, scores, strict=True)]  # what a layer dropped it may regrow
    if sum(room) < total:  # some layer has nothing to regrow: the others may take all that they have
        room = [score.numel() for score in scores]
    given = [min(math.floor(share * total), r) for share, r in zip(shares(sites), room, strict=True)]
    while (left := total - sum(given)) > 0:
        open_ = [i for i in range(len(sites)) if given[i] < room[i]]
        each = max(1, left // len(open_))
        for i in open_:
            more = min(each, room[i] - given[i], total - sum(given))
            given[i] += more
    return given
