"""Laws of one event: what is grown, what is exchanged where there is little to grow, and who is left alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

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
    """One event over all layers: exchanges hold the sizes; a candidate for which nothing speaks (0, -0.0, NaN) is never exchanged for a
    block, and grows only where the size must rise; equal scores are decided at random, by the given generator; layers without gradient,
    and layers that cannot serve, are left alone and not asked about; nothing hangs on which object a slot is.

    Args:
        draws: events of each test for uniformity.
    """
    rng = torch.Generator().manual_seed(0)
    try:
        for trial in range(trials):
            _check_exchange(event, rng, trial)
            _check_growth(event, rng, trial)
            _check_shared(event, rng, trial)
        _check_left_alone(event, rng)
        _check_anywhere(event, rng)
        _check_ties(event, rng, draws)
    except UsageError as refusal:
        raise AssertionError(f"event: must not fail: {refusal}") from refusal


def _site(rng: torch.Generator, speaking: int, n: int = 20, m: int = 15, blank: float = 0.0) -> LayerState:
    """A layer of 6 x 8 blocks, n of them kept; of m candidates so many have a gradient, the others are ``blank``."""
    s = Support.random((6, 8), n, rng=rng)
    ids, h = s.sample_outside(m, rng), torch.full((m,), blank, dtype=torch.float64)
    h[torch.randperm(m, generator=rng)[:speaking]] = (
        torch.randn(speaking, generator=rng, dtype=torch.float64).abs() + 0.1
    )
    w, g = (torch.randn(n, generator=rng, dtype=torch.float64) for _ in range(2))
    return LayerState(s, w, g, ids, h, n, n, 1.0)


def _changed(layer: LayerState, outcome: Outcome) -> tuple[set[int], set[int]]:
    """Units that went and blocks that came."""
    before, after = (set(s.ids().tolist()) for s in (layer.s, outcome.support))
    return before - after, after - before


def _check_exchange(event: Event, rng: torch.Generator, trial: int) -> None:
    blank, speaking, k = (0.0, -0.0, NAN)[trial % 3], trial % 9, 6
    layer = _site(rng, speaking, blank=blank)
    (outcome,) = event(Topology("a"), Update(drop_fraction=k / 20), [layer], rng)
    goes, comes = _changed(layer, outcome)
    where = f"event: {k} blocks to exchange, {speaking} candidates with a gradient, the others {blank}"
    due = min(k, speaking)
    record = outcome.dropped, outcome.grown
    demand(record == (due, due), f"{where}: {due} must be exchanged, not {record}")
    best = layer.ids[layer.h.nan_to_num().sort(descending=True)[1][:due]].tolist()
    demand(comes == set(best), f"{where}: the strongest must come")
    lowest = layer.s.ids()[layer.w.abs().sort()[1][:due]].tolist()
    demand(goes == set(lowest), f"{where}: the smallest must go, and no more than come")
    demand(outcome.sensed == 15, f"{where}: 15 were sensed, not {outcome.sensed}")


def _check_growth(event: Event, rng: torch.Generator, trial: int) -> None:
    blank, speaking, more, k = (0.0, NAN)[trial % 2], trial % 9, 4, 5
    layer = _site(rng, speaking, blank=blank)._replace(size=24)
    (outcome,) = event(Topology("a"), Update(drop_fraction=k / 20), [layer], rng)
    where = f"event: {k} blocks to exchange and {more} more to grow, {speaking} candidates with a gradient, the others {blank}"
    demand(outcome.support.n == 24, f"{where}: 24 must be kept, not {outcome.support.n}")
    due = max(0, min(k, speaking - more))
    demand(outcome.dropped == due, f"{where}: {due} must be exchanged, not {outcome.dropped}")
    speaks = set(layer.ids[layer.h > 0].tolist())
    _, comes = _changed(layer, outcome)
    demand(len(comes & speaks) == min(speaking, more + due), f"{where}: what has a gradient must come first")


def _check_shared(event: Event, rng: torch.Generator, trial: int) -> None:
    speaking = trial % 4, 0, trial % 7
    layers = [_site(rng, p) for p in speaking]
    topology = Topology("a", allocate=allocate_pooled, keeps_layer_sizes=False)
    outcomes = event(topology, Update(drop_fraction=0.3), layers, rng)
    where = f"event: layers with {speaking} candidates with a gradient share their growth"
    due = min(sum(speaking), sum(min(6, s.s.n - least_size(s)) for s in layers))
    grown = sum(o.grown for o in outcomes)
    demand(
        sum(o.support.n for o in outcomes) == sum(s.s.n for s in layers),
        f"{where}: together they must keep their blocks",
    )
    demand(grown == due == sum(o.dropped for o in outcomes), f"{where}: {due} must be exchanged, not {grown}")
    for layer, outcome in zip(layers, outcomes, strict=True):
        _, comes = _changed(layer, outcome)
        demand(comes <= set(layer.ids[layer.h > 0].tolist()), f"{where}: a candidate without a gradient must not come")


def _check_left_alone(event: Event, rng: torch.Generator) -> None:
    fine = _site(rng, 9)
    s = Support.full((6, 8))
    full = LayerState(s, torch.ones(48), None, s.ids()[:0], torch.ones(0), 48, 48, 1.0)
    untouched = _site(rng, 9)._replace(g=None, has_gradient=False, size=10)
    seen: list[LayerState] = []

    def drop(layer: LayerState) -> Tensor:
        seen.append(layer)
        return layer.w.abs()

    def amount(layers: Sequence[LayerState], update: Update) -> list[int]:
        seen.extend(layers)
        return [4] * len(layers)

    topology = Topology("a", n_exchange=amount, drop_score=drop)
    for kind in (
        topology,
        replace(topology, allocate=allocate_pooled, keeps_layer_sizes=False),
        replace(topology, grow_score=grow_random, candidates="anywhere"),
    ):
        first, second, third = event(kind, Update(drop_fraction=0.3), [untouched, fine, full], rng)
        where = "event: a layer "
        demand(
            first.support.same(untouched.s) and first[1:3] == (0, 0), where + "that got no gradient must be left alone"
        )
        demand(third.support.same(full.s) and third[1:3] == (0, 0), where + "that is full must be left alone")
        demand((second.dropped, second.grown) == (4, 4), where + "beside such layers must exchange its blocks")
    named = all(layer.has_gradient and layer.s.n < 48 for layer in seen)
    demand(named, "event: no slot may be asked about a layer without gradient, or about one that cannot serve")


def _check_anywhere(event: Event, rng: torch.Generator) -> None:
    """Growth that needs no measurement, by a function and by the same in a wrapper."""
    layer = _site(rng, 0, m=0)._replace(g=None)

    def wrapped(*args: Any) -> tuple[Tensor, Tensor]:
        return grow_random(*args)

    results = []
    for grow in (grow_random, wrapped):
        own = torch.Generator().manual_seed(3)
        (outcome,) = event(
            Topology("a", grow_score=grow, candidates="anywhere"), Update(drop_fraction=0.3), [layer], own
        )
        demand(
            (outcome.dropped, outcome.grown) == (6, 6),
            "event: what may come from anywhere needs no gradient: 6 must be exchanged",
        )
        results.append(outcome.support)
    demand(results[0].same(results[1]), "event: a slot in a wrapper must give the same support")


def _check_ties(event: Event, rng: torch.Generator, draws: int) -> None:
    """Equal weights go, equal gradients come, and where the size must rise zeros come: all alike, and as the generator says."""
    cases = {"equal gradients": (_site(rng, 0, blank=1.0), 20), "no gradient": (_site(rng, 0), 25)}
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
        demand(torch.equal(state, torch.get_rng_state()), f"{where}: torch's own generator must be left alone")
        uniform(kept[layer.ids], draws, 5 / 15, f"{where}: all candidates must come alike")
        if name == "equal gradients":
            uniform(kept[layer.s.ids()], draws, 15 / 20, f"{where}: all blocks must go alike")
