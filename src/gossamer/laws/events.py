"""Laws of one event: what is grown, what is exchanged where there is little to grow, and who is left alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._errors import Unfit
from ..support import Support
from ..topology.topology import Change, Outcome, Site, Topology, chance, floor, pooled
from ..topology.topology import event as real_event
from .details import demand, uniform

Event = Callable[[Topology, Change, Sequence[Site], torch.Generator | None], list[Outcome]]
NAN = float("nan")


def check_event(event: Event = real_event, *, trials: int = 28, draws: int = 120) -> None:
    """One event over all layers: exchanges hold the sizes; a candidate for which nothing speaks (0, -0.0, NaN) is never exchanged for a
    unit, and grows only where the size must rise; equal scores are decided at random, by the given generator; layers without gradient,
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
    except Unfit as refusal:
        raise AssertionError(f"event: must not fail: {refusal}") from refusal


def _site(rng: torch.Generator, speaking: int, n: int = 20, m: int = 15, blank: float = 0.0) -> Site:
    """A layer of 6 x 8 units, n of them kept; of m candidates so many have a gradient, the others are ``blank``."""
    s = Support.random((6, 8), n, rng=rng)
    ids, h = s.sample_outside(m, rng), torch.full((m,), blank, dtype=torch.float64)
    h[torch.randperm(m, generator=rng)[:speaking]] = torch.randn(speaking, generator=rng, dtype=torch.float64).abs() + 0.1
    w, g = (torch.randn(n, generator=rng, dtype=torch.float64) for _ in range(2))
    return Site(s, w, g, ids, h, n, n, 1.0)


def _changed(site: Site, outcome: Outcome) -> tuple[set[int], set[int]]:
    """Units that went and units that came."""
    before, after = (set(s.ids().tolist()) for s in (site.s, outcome.support))
    return before - after, after - before


def _check_exchange(event: Event, rng: torch.Generator, trial: int) -> None:
    blank, speaking, k = (0.0, -0.0, NAN)[trial % 3], trial % 9, 6
    site = _site(rng, speaking, blank=blank)
    (outcome,) = event(Topology("a"), Change(drop=k / 20), [site], rng)
    goes, comes = _changed(site, outcome)
    where = f"event: {k} units to exchange, {speaking} candidates with a gradient, the others {blank}"
    due = min(k, speaking)
    record = outcome.dropped, outcome.grown
    demand(record == (due, due), f"{where}: {due} must be exchanged, not {record}")
    best = site.ids[site.h.nan_to_num().sort(descending=True)[1][:due]].tolist()
    demand(comes == set(best), f"{where}: the strongest must come")
    lowest = site.s.ids()[site.w.abs().sort()[1][:due]].tolist()
    demand(goes == set(lowest), f"{where}: the smallest must go, and no more than come")
    demand(outcome.sensed == 15, f"{where}: 15 were sensed, not {outcome.sensed}")


def _check_growth(event: Event, rng: torch.Generator, trial: int) -> None:
    blank, speaking, more, k = (0.0, NAN)[trial % 2], trial % 9, 4, 5
    site = _site(rng, speaking, blank=blank)._replace(size=24)
    (outcome,) = event(Topology("a"), Change(drop=k / 20), [site], rng)
    where = f"event: {k} units to exchange and {more} more to grow, {speaking} candidates with a gradient, the others {blank}"
    demand(outcome.support.n == 24, f"{where}: 24 must be kept, not {outcome.support.n}")
    due = max(0, min(k, speaking - more))
    demand(outcome.dropped == due, f"{where}: {due} must be exchanged, not {outcome.dropped}")
    speaks = set(site.ids[site.h > 0].tolist())
    _, comes = _changed(site, outcome)
    demand(len(comes & speaks) == min(speaking, more + due), f"{where}: what has a gradient must come first")


def _check_shared(event: Event, rng: torch.Generator, trial: int) -> None:
    speaking = trial % 4, 0, trial % 7
    sites = [_site(rng, p) for p in speaking]
    topology = Topology("a", share=pooled, keeps_layer_sizes=False)
    outcomes = event(topology, Change(drop=0.3), sites, rng)
    where = f"event: layers with {speaking} candidates with a gradient share their growth"
    due = min(sum(speaking), sum(min(6, s.s.n - floor(s)) for s in sites))
    grown = sum(o.grown for o in outcomes)
    demand(sum(o.support.n for o in outcomes) == sum(s.s.n for s in sites), f"{where}: together they must keep their units")
    demand(grown == due == sum(o.dropped for o in outcomes), f"{where}: {due} must be exchanged, not {grown}")
    for site, outcome in zip(sites, outcomes, strict=True):
        _, comes = _changed(site, outcome)
        demand(comes <= set(site.ids[site.h > 0].tolist()), f"{where}: a candidate without a gradient must not come")


def _check_left_alone(event: Event, rng: torch.Generator) -> None:
    fine = _site(rng, 9)
    s = Support.full((6, 8))
    full = Site(s, torch.ones(48), None, s.ids()[:0], torch.ones(0), 48, 48, 1.0)
    untouched = _site(rng, 9)._replace(g=None, has_gradient=False, size=10)
    seen: list[Site] = []

    def drop(site: Site) -> Tensor:
        seen.append(site)
        return site.w.abs()

    def amount(sites: Sequence[Site], change: Change) -> list[int]:
        seen.extend(sites)
        return [4] * len(sites)

    topology = Topology("a", amount=amount, drop=drop)
    for kind in (topology, replace(topology, share=pooled, keeps_layer_sizes=False), replace(topology, grow=chance, candidates="anywhere")):
        first, second, third = event(kind, Change(drop=0.3), [untouched, fine, full], rng)
        where = "event: a layer "
        demand(first.support.same(untouched.s) and first[1:3] == (0, 0), where + "that got no gradient must be left alone")
        demand(third.support.same(full.s) and third[1:3] == (0, 0), where + "that is full must be left alone")
        demand((second.dropped, second.grown) == (4, 4), where + "beside such layers must exchange its units")
    named = all(site.has_gradient and site.s.n < 48 for site in seen)
    demand(named, "event: no slot may be asked about a layer without gradient, or about one that cannot serve")


def _check_anywhere(event: Event, rng: torch.Generator) -> None:
    """Growth that needs no measurement, by a function and by the same in a wrapper."""
    site = _site(rng, 0, m=0)._replace(g=None)

    def wrapped(*args: Any) -> tuple[Tensor, Tensor]:
        return chance(*args)

    results = []
    for grow in (chance, wrapped):
        own = torch.Generator().manual_seed(3)
        (outcome,) = event(Topology("a", grow=grow, candidates="anywhere"), Change(drop=0.3), [site], own)
        demand((outcome.dropped, outcome.grown) == (6, 6), "event: what may come from anywhere needs no gradient: 6 must be exchanged")
        results.append(outcome.support)
    demand(results[0].same(results[1]), "event: a slot in a wrapper must give the same support")


def _check_ties(event: Event, rng: torch.Generator, draws: int) -> None:
    """Equal weights go, equal gradients come, and where the size must rise zeros come: all alike, and as the generator says."""
    cases = {"equal gradients": (_site(rng, 0, blank=1.0), 20), "no gradient": (_site(rng, 0), 25)}
    for name, (site, size) in cases.items():
        site, where = site._replace(w=torch.ones(20, dtype=torch.float64), size=size), f"event: {name}, equal weights"
        kept = torch.zeros(48)
        state = torch.get_rng_state()
        for seed in range(draws):
            one, two = (event(Topology("a"), Change(drop=0.25), [site], torch.Generator().manual_seed(seed))[0] for _ in range(2))
            demand(one.support.same(two.support), f"{where}: the generator must decide")
            kept[one.support.ids()] += 1
        demand(torch.equal(state, torch.get_rng_state()), f"{where}: torch's own generator must be left alone")
        uniform(kept[site.ids], draws, 5 / 15, f"{where}: all candidates must come alike")
        if name == "equal gradients":
            uniform(kept[site.s.ids()], draws, 15 / 20, f"{where}: all units must go alike")
