"""One event. All methods share it.

A layer has n kept blocks. It should exchange k of them and end with `size` blocks:

    drop the  d = k + max(0, n - size)  blocks of lowest drop score   (merge: d = n - size, left by the last event)
    grow the  g = size - (n - d)        candidates of highest score   (merge: g = k more)
    survivors keep value and optimizer state; newborn blocks start at 0

k is reduced until there are enough blocks to drop and to grow. A candidate of score 0, NaN or -inf has no merit. If
candidates are sensed, a candidate without merit never replaces a kept block. It grows, drawn at random, only if the
size must rise and no better candidate is left. Equal scores are decided at random, by one number for each layer from
the Rewirer's generator. An event does not change a layer that got no gradient or has no candidate, and calls no slot
for it.

A topology with ``project`` computes the new supports of all layers at once, and thereby their sizes.

Cost O(n + m) for n kept and m sensed blocks. This file depends on no module and no optimizer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._errors import UsageError
from ..products.sense.op import tie_key
from ..support import Support
from .records import LayerState, Outcome, Update
from .rewiring import dropped, joined, ranking
from .slots import least_size
from .topology import Topology


def event(
    topology: Topology, update: Update, layers: Sequence[LayerState], rng: torch.Generator | None
) -> list[Outcome]:
    """One event over all layers: the new supports, in the order of ``layers``."""
    ties = [int(number) for number in torch.randint(1 << 62, (len(layers),), generator=rng)]
    layers = [layer._replace(ties=number) for layer, number in zip(layers, ties, strict=True)]
    if topology.project is not None:
        supports = topology.project(layers, update, rng)
        return [_projected(layer, s) for layer, s in zip(layers, supports, strict=True)]
    able = [i for i, layer in enumerate(layers) if layer.has_gradient and _can_serve(topology, layer)]
    outcomes = [Outcome(layer.s, 0, 0, layer.sensed if layer.has_gradient else 0) for layer in layers]
    if able:
        for i, done in zip(able, _exchanged(topology, update, [layers[i] for i in able], rng), strict=True):
            outcomes[i] = done
    return outcomes


def _projected(layer: LayerState, s: Support) -> Outcome:
    """The outcome for one layer of a topology with ``project``."""
    kept = int((layer.s.find(s.ids()) >= 0).sum())
    return Outcome(s, layer.s.n - kept, s.n - kept, layer.sensed)


def _can_serve(topology: Topology, layer: LayerState) -> bool:
    return _room(topology, layer) > 0 or (topology.keeps_layer_sizes and layer.s.n > layer.size)


def _room(topology: Topology, layer: LayerState) -> int:
    """The number of blocks off the support that may grow."""
    return layer.s.total - layer.s.n if topology.candidates == "anywhere" else layer.sensed


def _exchanged(
    topology: Topology, update: Update, layers: Sequence[LayerState], rng: torch.Generator | None
) -> list[Outcome]:
    fixed = topology.keeps_layer_sizes
    wanted = _checked(topology, "n_exchange", layers, topology.n_exchange(layers, update))
    parts = [_part(topology, layer, k) for layer, k in zip(layers, wanted, strict=True)]
    together = sum(part.n_grow for part in parts)
    parts = [_offered(topology, update, part, part.n_grow if fixed else together, rng) for part in parts]
    parts = [_fitted(part) for part in parts] if fixed else _fitted_together(parts)
    grows = _allocated(topology, parts)
    return [_done(part, n_grow) for part, n_grow in zip(parts, grows, strict=True)]


class _Part(NamedTuple):
    """The plan of an event for one layer, and the candidates."""

    layer: LayerState
    score: Tensor  # drop scores, (n,)
    k: int  # blocks to exchange
    shrink: int  # additional blocks to drop, because the size falls
    more: int  # additional blocks to grow, because the size rises
    merge: bool
    leaving: Tensor  # positions of the blocks to drop, in the order of dropping once k was reduced: see in_order
    ids: Tensor  # candidates
    grow_score: Tensor  # their scores, -inf where a candidate has no merit

    @property
    def n_drop(self) -> int:
        return self.shrink + (0 if self.merge else self.k)

    @property
    def n_grow(self) -> int:
        return self.more + self.k

    def stays(self) -> Tensor:
        """Which candidates are kept blocks: after ``grow_score`` was called, k may have been reduced."""
        spared = self.leaving[self.n_drop :]
        none = torch.zeros_like(self.ids, dtype=torch.bool)
        return torch.isin(self.ids, self.layer.s.ids()[spared]) if spared.numel() else none

    def in_order(self) -> "_Part":
        """The part with ``leaving`` in the order of dropping. If fewer blocks are dropped, the first ones are."""
        keys = tie_key(self.layer.s.ids()[self.leaving], self.layer.ties)
        return self._replace(leaving=self.leaving[ranking(self.score[self.leaving], keys).flip(0)])

    def offers(self) -> int:
        """The number of candidates that have merit."""
        return int(((self.grow_score > -math.inf) & ~self.stays()).sum())


def _part(topology: Topology, layer: LayerState, k: int) -> _Part:
    """The plan for a layer that should exchange k blocks, as far as it can."""
    n, s, room, least = layer.s.n, layer.s, _room(topology, layer), topology.min_fan_in
    score = topology.drop_score(layer)
    if tuple(score.shape) != (n,):
        what = f"drop_score must return one score for each of the {n} kept blocks"
        raise UsageError(topology.name, what, got=tuple(score.shape))
    size = layer.size if topology.keeps_layer_sizes else n  # where layers share growth, ``allocate`` sets the sizes
    droppable = n - (int(s.crow.diff().clamp(max=least).sum()) if least else 0)
    if not topology.keeps_layer_sizes:
        droppable = min(droppable, max(0, n - least_size(layer)))
    shrink = min(max(0, n - size), droppable)
    more = min(max(0, size - n + (shrink if topology.merge else 0)), room)
    most = room - more if topology.merge else min(droppable - shrink, room - more)  # without regrowth
    nothing = layer.ids[:0], score[:0]
    part = _Part(layer, score, max(0, min(k, most)), shrink, more, topology.merge, nothing[0], *nothing)
    return part._replace(leaving=dropped(s, score, part.n_drop, least, layer.ties))


def _offered(topology: Topology, update: Update, part: _Part, limit: int, rng: torch.Generator | None) -> _Part:
    """The part with candidates and their scores, if any block may grow."""
    if not limit:
        return part
    ids, score = topology.grow_score(part.layer, part.leaving, update, limit, rng)
    if ids.dim() != 1 or ids.shape != score.shape:
        what = "grow_score must return ids and scores, both of shape (m,)"
        raise UsageError(topology.name, what, got=(tuple(ids.shape), tuple(score.shape)))
    score = score if score.is_floating_point() else score.double()
    blank = score.isnan() if topology.candidates == "anywhere" else (score == 0) | score.isnan()
    return part._replace(ids=ids, grow_score=score.masked_fill(blank, -math.inf))


def _fitted(part: _Part) -> _Part:
    """The part with k reduced to the number of candidates with merit."""
    if not part.k or part.offers() >= part.n_grow:
        return part
    part = part.in_order()
    while part.k and (found := part.offers()) < part.n_grow:
        part = part._replace(k=max(0, found - part.more))
    return part


def _fitted_together(parts: list[_Part]) -> list[_Part]:
    """The parts where layers share growth: k is reduced in proportion, and candidates without merit are left out."""
    if sum(part.k for part in parts) > sum(part.offers() for part in parts):
        parts = [part.in_order() for part in parts]
    while (total := sum(part.k for part in parts)) > (found := sum(part.offers() for part in parts)):
        fewer = [part.k * found // total for part in parts]
        for i in range(len(parts)):  # the remainder of the rounding
            fewer[i] += min(parts[i].k - fewer[i], found - sum(fewer))
        parts = [part._replace(k=k) for part, k in zip(parts, fewer, strict=True)]
    merit = [(part.grow_score > -math.inf) & ~part.stays() for part in parts]
    return [
        part._replace(ids=part.ids[has], grow_score=part.grow_score[has])
        for part, has in zip(parts, merit, strict=True)
    ]


def _allocated(topology: Topology, parts: Sequence[_Part]) -> list[int]:
    """Blocks that each layer grows."""
    layers, planned = [part.layer for part in parts], [part.n_grow for part in parts]
    given = topology.allocate(layers, [part.n_drop for part in parts], planned, [part.grow_score for part in parts])
    grows = _checked(topology, "allocate", layers, given)
    if topology.keeps_layer_sizes and grows != planned:
        what = f"allocate returned {grows} blocks to grow, but the sizes of the layers require {planned}"
        raise UsageError(topology.name, what, remedy="keeps_layer_sizes=False, if layers share their growth")
    if sum(grows) != sum(planned) or any(g > part.ids.numel() for g, part in zip(grows, parts, strict=True)):
        what = f"allocate returned {grows} blocks to grow, of {[part.ids.numel() for part in parts]} candidates"
        raise UsageError(topology.name, f"{what}; the sum must be {sum(planned)}")
    return grows


def _done(part: _Part, n_grow: int) -> Outcome:
    layer, n_drop = part.layer, part.n_drop
    if not n_drop and not n_grow:
        return Outcome(layer.s, 0, 0, layer.sensed)
    grows, stays = ~part.stays(), torch.ones(layer.s.n, dtype=torch.bool, device=part.score.device)
    stays[part.leaving[:n_drop]] = False
    s = joined(layer.s, stays, part.ids[grows], part.grow_score[grows], n_grow, layer.ties)
    return Outcome(s, n_drop, n_grow, layer.sensed)


def _checked(topology: Topology, slot: str, layers: Sequence[LayerState], numbers: Sequence[int]) -> list[int]:
    """What a slot returned, as a list of one int for each layer. Raises UsageError where it is something else."""
    numbers = list(numbers)
    if len(numbers) != len(layers) or any(n != int(n) or n < 0 for n in numbers):
        what = f"{slot} must return a whole number of blocks for each of {len(layers)} layers"
        raise UsageError(topology.name, what, got=numbers)
    return [int(n) for n in numbers]
