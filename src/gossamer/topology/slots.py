"""The functions that fill the slots of a :class:`~gossamer.Topology` in the named methods.

when, sense    step -> what happens, what is measured; None is nothing
n_exchange     (layers, update) -> blocks that each layer exchanges
drop_score     (layer) -> one score for each kept block; the lowest are dropped
grow_score     (layer, dropped, update, limit, rng) -> candidate ids and their scores; the highest grow
allocate       (layers, drops, grows, scores) -> blocks that each layer grows
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import UsageError
from .._sampling import unique
from .._schedules import Events, cosine
from ..products.sense.op import tie_key, top_k
from ..support import Support
from .records import LayerState, Update


def never(_t: int) -> None:
    """None at every step: no event, no sensing."""
    return None


@dataclass(frozen=True)
class Annealed:
    """Events that exchange an annealed fraction. At step ``last`` one more event only sets the final sizes."""

    events: Events
    fraction: cosine
    step_optimizer: bool
    allow_regrow: bool
    last: int | None = None
    selectivity: float = math.inf

    def __call__(self, t: int) -> Update | None:
        if t == self.last:
            return Update(0.0, interval=self.events.gap(t))
        if t not in self.events:
            return None
        return Update(self.fraction(t), self.selectivity, self.step_optimizer, self.allow_regrow, self.events.gap(t))


def block_norm(blocks: Tensor) -> Tensor:
    """Magnitude of each block: |w| of a single weight, l2 norm of a tile; (n,) or (n, h, w) -> (n,)."""
    if blocks.dim() == 1:
        return blocks.abs()
    tiles: Any = blocks.flatten(1)  # the stubs of torch leave the type of norm open
    return tiles.norm(dim=1)


# -------------------------------------------------------------------- n_exchange


def exchange_fraction(layers: Sequence[LayerState], update: Update) -> list[int]:
    """k = trunc(drop_fraction * n), at most trunc(selectivity * candidates)."""

    def most(layer: LayerState) -> float:
        return update.selectivity * layer.sensed if update.selectivity < math.inf else math.inf

    return [int(min(update.drop_fraction * layer.s.n, most(layer))) for layer in layers]


def exchange_by_projection(layers: Sequence[LayerState], update: Update) -> list[int]:
    """The number of swaps of the exact projection on the n-sparse set (IHT), at most :func:`exchange_fraction`.

    z = w on the support, lookahead * gradient on the candidates. The n largest |z| are kept. Among equals, blocks of
    the support are kept.
    """
    swaps: list[int] = []
    for layer, most in zip(layers, exchange_fraction(layers, update), strict=True):
        lowest = block_norm(layer.w).sort()[0]
        highest = layer.lookahead * block_norm(layer.h).nan_to_num(0.0, math.inf).sort(descending=True)[0]
        k = min(lowest.numel(), highest.numel(), most)
        swaps.append(int((highest[:k] > lowest[:k]).sum()))  # both are sorted, so the pairs that swap come first
    return swaps


# -------------------------------------------------------------------- drop_score


def drop_by_magnitude(layer: LayerState) -> Tensor:
    """Drop score |w|: (n,)."""
    return block_norm(layer.w)


def drop_by_sign(layer: LayerState) -> Tensor:
    """Drop score of the original SET (Mocanu et al. 2018): drop the smallest positive and the largest negative
    weights, half each."""
    sign = torch.sign(layer.w) if layer.w.dim() == 1 else torch.sign(layer.w.flatten(1).sum(1))
    score = block_norm(layer.w).double()
    rank = torch.empty_like(score)
    for half in (sign > 0, sign <= 0):
        where = half.nonzero().flatten()
        levels = unique(score[where])  # equal weights get the same rank, the lowest of their ranks
        at = torch.searchsorted(levels, score[where])
        counts = torch.bincount(at, minlength=levels.numel())
        rank[where] = (counts.cumsum(0) - counts).to(rank.dtype)[at]
    return rank


# -------------------------------------------------------------------- grow_score


def grow_sensed(
    layer: LayerState, dropped: Tensor, update: Update, limit: int, _rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Candidates and grow scores |gradient|: sensed blocks, and just dropped blocks if they may grow again."""
    ids, h = layer.strongest(limit, layer.ties) if layer.strongest is not None else (layer.ids, layer.h)
    if not update.allow_regrow or not dropped.numel():
        return ids, block_norm(h)
    if layer.g is None:
        what = "blocks that were just dropped are scored by the gradient on the support"
        raise UsageError("grow_sensed", what, remedy="Sensing(active=True)")
    return torch.cat([ids, layer.s.ids()[dropped]]), block_norm(torch.cat([h, layer.g[dropped]]))


def grow_random(
    layer: LayerState, dropped: Tensor, _update: Update, limit: int, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Candidates drawn uniformly off the support, just dropped blocks included. For ``candidates="anywhere"``."""
    kept = torch.ones(layer.s.n, dtype=torch.bool, device=dropped.device)
    kept[dropped] = False
    rest = Support.from_ids(layer.s.ids()[kept], layer.s.shape, layer.s.block)
    ids = rest.sample_outside(min(limit, rest.total - rest.n), rng)
    return ids, torch.zeros(ids.shape, device=ids.device)


# -------------------------------------------------------------------- allocate


def allocate_fixed(
    layers: Sequence[LayerState], drops: Sequence[int], grows: Sequence[int], scores: Sequence[Tensor]
) -> list[int]:
    """Every layer grows as many blocks as planned: as many as it dropped, if its size stays."""
    return list(grows)


def allocate_pooled(
    layers: Sequence[LayerState], drops: Sequence[int], grows: Sequence[int], scores: Sequence[Tensor]
) -> list[int]:
    """Ranks the candidates of all layers together, by |gradient| / rms of the layer's gradient on its support.

    Every layer keeps at least :func:`least_size` blocks. If a layer has no candidate left, other layers grow more.
    """
    total = sum(grows)
    ranked: list[Tensor] = []
    owner: list[Tensor] = []
    for i, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        if layer.g is None:
            what = "layers are compared by the gradient on their supports"
            raise UsageError("allocate_pooled", what, remedy="Sensing(active=True)")
        rms = float(layer.g.double().square().mean().sqrt()) or 1.0
        own = (score.double() / rms).sort(descending=True)[0][:total]
        ranked.append(own)
        owner.append(torch.full(own.shape, i))
    winners = top_k(torch.cat(ranked).cpu(), total, lambda at: tie_key(at, layers[0].ties))
    return [int(n) for n in torch.bincount(torch.cat(owner)[winners], minlength=len(layers))]


def least_size(layer: LayerState) -> int:
    """The least number of blocks of a layer where layers share growth: one per block row, and a fifth of the start. A
    layer that started with fewer keeps all."""
    return min(layer.start, max(layer.s.grid[0], math.ceil(0.2 * layer.start)))
