"""What a topology is: a frozen record of when the support changes, what is sensed before, who goes, who comes, how layers share.

An event on one layer with n kept units, asked to exchange k and to end with `size` units:

    drop the  d = k + max(0, n - size)  units of lowest drop score     (merge: d = n - size, the surplus of the last event)
    grow the  g = size - (n - d)        candidates of highest score    (merge: g = k more)
    survivors keep value and optimizer state, the newborn start at 0 with zero state

Ties: the lower id wins, in keeping as in growing. k is clipped so that both sides can be served. Everything here is O(n + m) for n kept
and m sensed units; nothing knows a module or an optimizer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..budgets import Budget
from ..errors import Unfit
from ..ops.csr_sense.op import top_k
from ..schedules import Events, cosine, cubic
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
        anneal = self.share(t) / self.share.value if self.share.value else 0.0
        cap = self.cap * anneal if self.cap != math.inf else self.cap
        return Change(self.share(t), cap, self.move, self.reborn, self.events.gap(t))


class Site(NamedTuple):
    """What an event knows of one layer."""

    s: Support
    w: Tensor  # values on the support, (n,) or (n, h, w)
    g: Tensor | None  # smoothed gradient on the support, if asked for
    ids: Tensor  # sensed candidates, sorted, (m,) int64
    h: Tensor  # their smoothed gradient, (m,) or (m, h, w)
    size: int  # units this layer should have after the event
    start: int  # units it had when training began
    lookahead: float  # step size lr / (1 - momentum) times the interval: how far a weight moves until the next event
    strongest: Callable[[int], tuple[Tensor, Tensor]] | None = None  # streamed sensing: k -> the k strongest (ids, gradients)
    has_gradient: bool = True  # since the last event; without one the layer is left alone


class Outcome(NamedTuple):
    """What an event did to one layer."""

    support: Support
    dropped: int
    grown: int


# -------------------------------------------------------------------- the slots' values


def never(_t: int) -> None:
    """No event, no sensing."""
    return None


def norm(tiles: Tensor) -> Tensor:
    """Magnitude of each unit: |.| of a scalar, l2 norm of a tile; (n,) or (n, h, w) -> (n,)."""
    return tiles.abs() if tiles.dim() == 1 else tiles.flatten(1).norm(dim=1)


def magnitude(site: Site) -> Tensor:
    """Drop score |w|: (n,)."""
    return norm(site.w)


def by_sign(site: Site) -> Tensor:
    """Drop score of the original SET (Mocanu et al. 2018): the smallest positive and the largest negative weights go, half and half."""
    sign = torch.sign(site.w) if site.w.dim() == 1 else torch.sign(site.w.flatten(1).sum(1))
    score = norm(site.w).double()
    rank = torch.empty_like(score)
    for half in (sign > 0, sign <= 0):
        where = half.nonzero().flatten()
        order = torch.argsort(score[where], stable=True)
        rank[where[order]] = torch.arange(order.numel(), dtype=rank.dtype, device=rank.device)
    return rank


def exchanged(sites: Sequence[Site], change: Change) -> list[int]:
    """k = trunc(drop * n), at most trunc(cap * candidates)."""
    return [int(min(change.drop * site.s.n, change.cap * site.ids.numel())) for site in sites]


def projected(sites: Sequence[Site], change: Change) -> list[int]:
    """Swaps of the exact projection on the n-sparse set (IHT): z = w on the support, lookahead * gradient on the candidates, keep the
    n largest |z|; at most :func:`exchanged`."""
    swaps = []
    for site, most in zip(sites, exchanged(sites, change), strict=True):
        goers, comers = ranking(norm(site.w)).flip(0), ranking(norm(site.h))
        k = min(goers.numel(), comers.numel(), most)
        goer, comer = norm(site.w)[goers[:k]], site.lookahead * norm(site.h)[comers[:k]]
        wins = (comer > goer) | ((comer == goer) & (site.ids[comers[:k]] < site.s.ids()[goers[:k]]))
        swaps.append(int(wins.sum()))  # the pairs are ordered against each other: once one loses, all later ones do
    return swaps


def sensed(site: Site, dropped: Tensor, change: Change, limit: int, _rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Candidates and grow scores |gradient|: what was sensed, and what was just dropped if it may be reborn."""
    ids, h = site.strongest(limit) if site.strongest is not None else (site.ids, site.h)
    if not change.reborn or not dropped.numel():
        return ids, norm(h)
    if site.g is None:
        raise Unfit("sensed", "reborn units need the gradient on the support", remedy="Sense(active=True)")
    return torch.cat([ids, site.s.ids()[dropped]]), norm(torch.cat([h, site.g[dropped]]))


def chance(site: Site, dropped: Tensor, _change: Change, limit: int, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Candidates drawn uniformly among all units that are not kept, the just dropped included."""
    kept = torch.ones(site.s.n, dtype=torch.bool, device=dropped.device)
    kept[dropped] = False
    rest = Support.from_ids(site.s.ids()[kept], site.s.shape, site.s.unit)
    ids = rest.sample_outside(min(limit, rest.total - rest.n), rng)
    return ids, torch.zeros(ids.shape, device=ids.device)


def fixed(sites: Sequence[Site], drops: Sequence[int], grows: Sequence[int], scores: Sequence[Tensor]) -> list[int]:
    """Every layer grows what it dropped."""
    return list(grows)


def pooled(sites: Sequence[Site], drops: Sequence[int], grows: Sequence[int], scores: Sequence[Tensor]) -> list[int]:
    """Candidates of all layers ranked together by |gradient| / rms of the layer's gradient on its support; every layer keeps at least
    :func:`floor` units; the excess of a full layer goes to the next best candidate."""
    total, ranked, owner = sum(grows), [], []
    for i, (site, score) in enumerate(zip(sites, scores, strict=True)):
        rms = 1.0 if site.g is None else float(site.g.double().square().mean().sqrt()) or 1.0  # None: a full layer, which senses nothing
        own = (score.double() / rms).sort(descending=True, stable=True)[0][:total]
        ranked.append(own)
        owner.append(torch.full(own.shape, i))
    winners = torch.cat(owner)[top_k(torch.cat(ranked).cpu(), total)]
    return torch.bincount(winners, minlength=len(sites)).tolist()


def floor(site: Site) -> int:
    """Least units of a layer under pooled growth: one per output unit and a fifth of what it began with (or all, if it began with less)."""
    return min(site.start, max(site.s.grid[0], math.ceil(0.2 * site.start)))


@dataclass(frozen=True)
class Topology:
    """How the support changes: a value made by ``static()``, ``set_``, ``rigl``, ``snfs``, ``gmp``, ``csst`` or by hand.

    Steps count from 1. ``amount`` says how many units of each layer are exchanged; ``final`` is the density that the size of the support
    moves to, from what it is at the start, along 1 - (1 - p)^3 until step ``stop``, split among layers by ``budget`` (None: sizes stay).
    """

    name: str
    when: Callable[[int], Change | None] = never
    sense: Callable[[int], Sense | None] = never
    amount: Callable[[Sequence[Site], Change], list[int]] = exchanged
    drop: Callable[[Site], Tensor] = magnitude
    grow: Callable[[Site, Tensor, Change, int, torch.Generator | None], tuple[Tensor, Tensor]] = sensed
    share: Callable[[Sequence[Site], Sequence[int], Sequence[int], Sequence[Tensor]], list[int]] = fixed
    stop: int = 0  # no event after this step
    final: float | None = None
    budget: str | Budget | Mapping[str, float] = "erk"
    merge: bool = False  # grow first, prune back at the next event: between events a layer holds k units more
    min_fan_in: int = 0  # incoming units that every output unit keeps

    def settings(self) -> dict[str, str]:
        """What it is made of, as strings to compare: a saved run must not go on under other rules."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: getattr(v, "__qualname__", None) or repr(v) for name, v in values.items()}
        return {name: type(values[name]).__qualname__ if " at 0x" in text else text for name, text in shown.items()}

    def size(self, t: int, start: int, final: int) -> int:
        """Units of a layer after step t."""
        return start if start == final else round(cubic(start, final, 0, self.stop)(t))


# -------------------------------------------------------------------- one event


def survivors(s: Support, score: Tensor, drop: int, min_fan_in: int = 0) -> Tensor:
    """Positions (row order) of the units that stay when the ``drop`` lowest scores go, sorted, (n - drop,) int64."""
    if min_fan_in:
        score = score.clone()
        score[protected(s, score, min_fan_in)] = math.inf
    return top_k(score, s.n - drop)


def protected(s: Support, score: Tensor, min_fan_in: int) -> Tensor:
    """Positions of the ``min_fan_in`` best units of every unit row: these never go."""
    order = ranking(score)
    rows = s.rows().long()[order]
    order = order[torch.argsort(rows, stable=True)]  # by row, within a row best first
    place = torch.arange(s.n, device=order.device) - s.crow.long()[s.rows().long()[order]]
    return order[place < min_fan_in]


def ranking(score: Tensor) -> Tensor:
    """Positions from the highest score to the lowest; among equals the lower position first."""
    return torch.sort(score, descending=True, stable=True)[1]


def rewire(s: Support, drop_score: Tensor, born: Tensor, born_score: Tensor, drop: int, grow: int, min_fan_in: int = 0) -> Support:
    """The support without its ``drop`` lowest-scored units and with the ``grow`` highest-scored candidates.

    Args:
        drop_score: (n,), row order.
        born, born_score: candidate ids (m,) int64, none of them among the units that stay, and their scores (m,).
    """
    keep = survivors(s, drop_score, drop, min_fan_in)
    order = torch.argsort(born)  # ties go to the lower id, so rank candidates in the order of their ids
    grown = born[order][top_k(born_score[order], grow)]
    return Support.from_ids(torch.cat([s.ids()[keep], grown]), s.shape, s.unit)


def event(topology: Topology, change: Change, sites: Sequence[Site], rng: torch.Generator | None) -> list[Outcome]:
    """One event over all layers: the new supports, in the order of ``sites``."""
    serving = [site for site in sites if site.has_gradient]
    if len(serving) < len(sites):
        done = iter(event(topology, change, serving, rng) if serving else ())
        return [next(done) if site.has_gradient else Outcome(site.s, 0, 0) for site in sites]
    wanted = topology.amount(sites, change)
    plans = [_plan(topology, change, site, k) for site, k in zip(sites, wanted, strict=True)]
    drops, grows = [d for d, _ in plans], [g for _, g in plans]
    candidates: list[tuple[Tensor, Tensor]] = []
    drop_scores = [topology.drop(site) for site in sites]
    for site, score, d, g in zip(sites, drop_scores, drops, grows, strict=True):
        limit = g if topology.share is fixed else sum(grows)
        stays = torch.zeros(site.s.n, dtype=torch.bool, device=score.device)
        stays[survivors(site.s, score, d, topology.min_fan_in)] = True
        candidates.append(topology.grow(site, (~stays).nonzero().flatten(), change, limit, rng) if limit else (site.ids[:0], score[:0]))
    grows = topology.share(sites, drops, grows, [score for _, score in candidates])
    return [
        Outcome(rewire(site.s, score, ids, born_score, d, g, topology.min_fan_in) if d or g else site.s, d, g)
        for site, score, (ids, born_score), d, g in zip(sites, drop_scores, candidates, drops, grows, strict=True)
    ]


def _plan(topology: Topology, change: Change, site: Site, k: int) -> tuple[int, int]:
    """(drop, grow) of one layer, both servable."""
    n = site.s.n
    size = site.size if topology.share is fixed else n  # where layers share, their sizes are the outcome
    droppable = n - _protected_count(site.s, topology.min_fan_in)
    if topology.share is not fixed:
        droppable = min(droppable, max(0, n - floor(site)))
    anywhere = topology.sense is never or site.strongest is not None  # what is not sensed may grow wherever its rule likes
    candidates = site.s.total - n if anywhere else site.ids.numel()
    shrink = min(max(0, n - size), droppable)
    if topology.merge:
        return shrink, min(max(0, size - (n - shrink)) + k, candidates)
    more = min(max(0, size - n), candidates)
    k = max(0, min(k, droppable - shrink, candidates - more))  # the just dropped may be regrown, but are not counted on
    return k + shrink, k + more


def _protected_count(s: Support, min_fan_in: int) -> int:
    return int(s.crow.diff().clamp(max=min_fan_in).sum()) if min_fan_in else 0
