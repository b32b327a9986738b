"""The values that the slots of a :class:`~gossamer.topology.topology.Topology` have in the named methods.

    when, sense    step -> what happens, what is measured; None: nothing
    amount         (sites, change) -> units that each layer exchanges
    drop           (site) -> one score for each kept unit; the lowest go
    grow           (site, dropped, change, limit, rng) -> candidate ids and scores; the highest come
    share          (sites, drops, grows, scores) -> units that each layer grows
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._errors import Unfit
from ..products.sense.op import tie_key, top_k
from ..support import Support
from .records import Change, Site


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
        levels, at = torch.unique(score[where], return_inverse=True)  # equal weights have one rank: that of the first of them
        counts = torch.bincount(at, minlength=levels.numel())
        rank[where] = (counts.cumsum(0) - counts).to(rank.dtype)[at]
    return rank


def exchanged(sites: Sequence[Site], change: Change) -> list[int]:
    """k = trunc(drop * n), at most trunc(cap * candidates)."""
    return [int(min(change.drop * s.s.n, change.cap * s.sensed if change.cap < math.inf else math.inf)) for s in sites]


def projected(sites: Sequence[Site], change: Change) -> list[int]:
    """Swaps of the exact projection on the n-sparse set (IHT): z = w on the support, lookahead * gradient on the candidates, keep the
    n largest |z|, the support's among equals; at most :func:`exchanged`."""
    swaps = []
    for site, most in zip(sites, exchanged(sites, change), strict=True):
        goers = norm(site.w).sort()[0]
        comers = site.lookahead * norm(site.h).nan_to_num(0.0, math.inf).sort(descending=True)[0]
        k = min(goers.numel(), comers.numel(), most)
        swaps.append(int((comers[:k] > goers[:k]).sum()))  # the pairs are ordered against each other: once one loses, all later ones do
    return swaps


def sensed(site: Site, dropped: Tensor, change: Change, limit: int, _rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Candidates and grow scores |gradient|: what was sensed, and what was just dropped if it may be reborn."""
    ids, h = site.strongest(limit, site.ties) if site.strongest is not None else (site.ids, site.h)
    if not change.reborn or not dropped.numel():
        return ids, norm(h)
    if site.g is None:
        raise Unfit("sensed", "reborn units need the gradient on the support", remedy="Sense(active=True)")
    return torch.cat([ids, site.s.ids()[dropped]]), norm(torch.cat([h, site.g[dropped]]))


def chance(site: Site, dropped: Tensor, _change: Change, limit: int, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Candidates drawn uniformly among all units that are not kept, the just dropped included: for ``candidates="anywhere"``."""
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
        if site.g is None:
            raise Unfit("pooled", "layers are compared by the gradient on their supports", remedy="Sense(active=True)")
        rms = float(site.g.double().square().mean().sqrt()) or 1.0
        own = (score.double() / rms).sort(descending=True)[0][:total]
        ranked.append(own)
        owner.append(torch.full(own.shape, i))
    winners = top_k(torch.cat(ranked).cpu(), total, lambda at: tie_key(at, sites[0].ties))
    return torch.bincount(torch.cat(owner)[winners], minlength=len(sites)).tolist()


def floor(site: Site) -> int:
    """Least units of a layer under pooled growth: one per output unit and a fifth of what it began with (or all, if it began with less)."""
    return min(site.start, max(site.s.grid[0], math.ceil(0.2 * site.start)))
