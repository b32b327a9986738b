"""The law of one event over all layers."""

# torch leaves Tensor.tolist without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._errors import UsageError
from ..support import Support
from ..topology import LayerState, Outcome, Topology, Update
from ..topology import event as real_event
from ..topology.slots import allocate_pooled, grow_random, least_size
from .details import demand, uniform

Event = Callable[[Topology, Update, Sequence[LayerState], torch.Generator | None], list[Outcome]]
NAN = float("nan")


def check_event(event: Event = real_event, *, trials: int = 28, draws: int = 120) -> None:
    """One event over all layers: the exchanged blocks, the grown blocks, and the unchanged layers.

    An exchange keeps the size of a layer. A candidate without a gradient (0, -0.0, NaN) is never exchanged for a block;
    it grows only if the size must rise. The given generator decides between equal scores. Layers without a gradient and
    full layers do not change, and no slot is called for them. The result does not depend on the identity of a slot: a
    wrapper around a function gives the same result.

    Args:
        event: ``gossamer.event``, or a function with its signature.
        trials: random cases of each kind.
        draws: events of each test for uniformity.

    Raises: AssertionError.
    """
    rng = torch.Generator().manual_seed(0)
    try:
        for trial in range(trials):
            _check_exchange(event, rng, trial)
            _check_growth(event, rng, trial)
            _check_shared(event, rng, trial)
        _check_unchanged(event, rng)
        _check_anywhere(event, rng)
        _check_ties(event, rng, draws)
    except UsageError as refusal:
        raise AssertionError(f"event: must not fail: {refusal}") from refusal


def _layer(rng: torch.Generator, active: int, n: int = 20, m: int = 15, blank: float = 0.0) -> LayerState:
    """A layer of 6 x 8 blocks with n kept ones. Of m candidates, ``active`` have a gradient, the others ``blank``."""
    s = Support.random((6, 8), n, rng=rng)
    ids, h = s.sample_outside(m, rng), torch.full((m,), blank, dtype=torch.float64)
    gradients = torch.randn(active, generator=rng, dtype=torch.float64).abs() + 0.1
    h[torch.randperm(m, generator=rng)[:active]] = gradients
    w, g = (torch.randn(n, generator=rng, dtype=torch.float64) for _ in range(2))
    return LayerState(s, w, g, ids, h, n, n, 1.0)


def _changed(layer: LayerState, outcome: Outcome) -> tuple[set[int], set[int]]:
    """Ids of the dropped blocks, and of the grown blocks."""
    before, after = (set(s.ids().tolist()) for s in (layer.s, outcome.support))
    return before - after, after - before


def _check_exchange(event: Event, rng: torch.Generator, trial: int) -> None:
    """A layer that keeps its size."""
    blank, active, k = (0.0, -0.0, NAN)[trial % 3], trial % 9, 6
    layer = _layer(rng, active, blank=blank)
    (outcome,) = event(Topology("a"), Update(drop_fraction=k / 20), [layer], rng)
    dropped, grown = _changed(layer, outcome)
    where = f"event: {k} blocks to exchange, {active} candidates with a gradient, the others {blank}"
    due = min(k, active)
    record = outcome.dropped, outcome.grown
    demand(record == (due, due), f"{where}: {due} must be exchanged, not {record}")
    best = layer.ids[layer.h.nan_to_num().sort(descending=True)[1][:due]].tolist()
    demand(grown == set(best), f"{where}: the strongest must grow")
    lowest = layer.s.ids()[layer.w.abs().sort()[1][:due]].tolist()
    demand(dropped == set(lowest), f"{where}: the smallest must be dropped, and no more than grow")
    demand(outcome.sensed == 15, f"{where}: 15 were sensed, not {outcome.sensed}")


def _check_growth(event: Event, rng: torch.Generator, trial: int) -> None:
    """A layer whose size rises."""
    blank, active, more, k = (0.0, NAN)[trial % 2], trial % 9, 4, 5
    layer = _layer(rng, active, blank=blank)._replace(size=24)
    (outcome,) = event(Topology("a"), Update(drop_fraction=k / 20), [layer], rng)
    where = f"event: {k} blocks to exchange and {more} more to grow, {active} candidates with a gradient"
    where = f"{where}, the others {blank}"
    demand(outcome.support.n == 24, f"{where}: 24 must be kept, not {outcome.support.n}")
    due = max(0, min(k, active - more))
    demand(outcome.dropped == due, f"{where}: {due} must be exchanged, not {outcome.dropped}")
    with_gradient = set(layer.ids[layer.h > 0].tolist())
    _, grown = _changed(layer, outcome)
    first = len(grown & with_gradient) == min(active, more + due)
    demand(first, f"{where}: candidates with a gradient must grow before the others")


def _check_shared(event: Event, rng: torch.Generator, trial: int) -> None:
    """Layers that share their growth."""
    active = trial % 4, 0, trial % 7
    layers = [_layer(rng, count) for count in active]
    topology = Topology("a", allocate=allocate_pooled, keeps_layer_sizes=False)
    outcomes = event(topology, Update(drop_fraction=0.3), layers, rng)
    where = f"event: layers with {active} candidates with a gradient share their growth"
    due = min(sum(active), sum(min(6, layer.s.n - least_size(layer)) for layer in layers))
    kept = sum(o.support.n for o in outcomes) == sum(layer.s.n for layer in layers)
    demand(kept, f"{where}: together they must keep their blocks")
    dropped, grown = sum(o.dropped for o in outcomes), sum(o.grown for o in outcomes)
    demand(grown == due == dropped, f"{where}: {due} must be exchanged, not {grown}")
    for layer, outcome in zip(layers, outcomes, strict=True):
        _, born = _changed(layer, outcome)
        with_gradient = set(layer.ids[layer.h > 0].tolist())
        demand(born <= with_gradient, f"{where}: a candidate without a gradient must not grow")


def _check_unchanged(event: Event, rng: torch.Generator) -> None:
    """Layers without a gradient, full layers, and a layer that can exchange blocks, in one event."""
    fine = _layer(rng, 9)
    s = Support.full((6, 8))
    full = LayerState(s, torch.ones(48), None, s.ids()[:0], torch.ones(0), 48, 48, 1.0)
    without = _layer(rng, 9)._replace(g=None, has_gradient=False, size=10)
    seen: list[LayerState] = []

    def drop(layer: LayerState) -> Tensor:
        seen.append(layer)
        return layer.w.abs()

    def four_each(layers: Sequence[LayerState], _update: Update) -> list[int]:
        seen.extend(layers)
        return [4] * len(layers)

    topology = Topology("a", n_exchange=four_each, drop_score=drop)
    pooled = replace(topology, allocate=allocate_pooled, keeps_layer_sizes=False)
    anywhere = replace(topology, grow_score=grow_random, candidates="anywhere")
    for kind in (topology, pooled, anywhere):
        first, second, third = event(kind, Update(drop_fraction=0.3), [without, fine, full], rng)
        for layer, outcome, which in ((without, first, "has no gradient"), (full, third, "is full")):
            unchanged = outcome.support.same(layer.s) and (outcome.dropped, outcome.grown) == (0, 0)
            demand(unchanged, f"event: a layer that {which} must stay unchanged")
        exchanged = (second.dropped, second.grown) == (4, 4)
        demand(exchanged, "event: all other layers must exchange their blocks")
    named = all(layer.has_gradient and layer.s.n < 48 for layer in seen)
    demand(named, "event: no slot may be called for a layer without gradient, or for a full layer")


def _check_anywhere(event: Event, rng: torch.Generator) -> None:
    """Growth without a measurement, by a function and by a wrapper around it."""
    layer = _layer(rng, 0, m=0)._replace(g=None)

    def wrapped(
        layer: LayerState, dropped: Tensor, update: Update, limit: int, rng: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        return grow_random(layer, dropped, update, limit, rng)

    results: list[Support] = []
    for grow in (grow_random, wrapped):
        own, topology = torch.Generator().manual_seed(3), Topology("a", grow_score=grow, candidates="anywhere")
        (outcome,) = event(topology, Update(drop_fraction=0.3), [layer], own)
        exchanged = (outcome.dropped, outcome.grown) == (6, 6)
        demand(exchanged, "event: candidates from anywhere need no gradient: 6 must be exchanged")
        results.append(outcome.support)
    demand(results[0].same(results[1]), "event: a slot in a wrapper must give the same support")


def _check_ties(event: Event, rng: torch.Generator, draws: int) -> None:
    """Among equal scores, all blocks are dropped equally often, and all candidates grow equally often."""
    cases = {"equal gradients": (_layer(rng, 0, blank=1.0), 20), "no gradient": (_layer(rng, 0), 25)}
    for name, (layer, size) in cases.items():
        layer, where = layer._replace(w=torch.ones(20, dtype=torch.float64), size=size), f"event: {name}, equal weights"
        kept = torch.zeros(48)
        state = torch.get_rng_state()
        for seed in range(draws):
            one, two = (
                event(Topology("a"), Update(drop_fraction=0.25), [layer], torch.Generator().manual_seed(seed))[0]
                for _ in range(2)
            )
            demand(one.support.same(two.support), f"{where}: the generator must decide")
            kept[one.support.ids()] += 1
        demand(torch.equal(state, torch.get_rng_state()), f"{where}: torch's own generator must not be advanced")
        uniform(kept[layer.ids], draws, 5 / 15, f"{where}: all candidates must grow equally often")
        if name == "equal gradients":
            uniform(kept[layer.s.ids()], draws, 15 / 20, f"{where}: all blocks must be dropped equally often")
