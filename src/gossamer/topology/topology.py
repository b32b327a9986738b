"""What a topology is: a frozen record of when the support changes, what is sensed before, who goes, who comes, how layers share.

An event on one layer with n kept units, asked to exchange k and to end with `size` units:

    drop the  d = k + max(0, n - size)  units of lowest drop score     (merge: d = n - size, the surplus of the last event)
    grow the  g = size - (n - d)        candidates of highest score    (merge: g = k more)
    survivors keep value and optimizer state, the newborn start at 0 with zero state

k becomes smaller until both sides can be served. Nothing speaks for a candidate that scores 0 (or NaN, -inf): where growth goes by what was
sensed it is never exchanged for a unit that is there, and grows, drawn at random, only where the size must rise and no better one is left.
Equal scores are decided at random, by one number for each layer from the Rewirer's generator. A layer that got no gradient, or has nothing
to offer, is left alone: no slot is asked about it.

What an event does hangs on these records alone, not on which function a slot holds: a wrapped or copied slot gives the same run.
Everything here is O(n + m) for n kept and m sensed units; nothing knows a module or an optimizer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._budgets import Budget
from .._errors import Unfit, call_problem
from ..products.sense.op import tie_key
from .._schedules import Events, cubic
from .records import Annealed as Annealed
from .records import Change as Change
from .records import Outcome as Outcome
from .records import Sense as Sense
from .records import Site as Site
from .rewiring import joined as joined
from .rewiring import leavers as leavers
from .rewiring import ranking as ranking
from .rewiring import rewire as rewire
from .rewiring import survivors as survivors
from .slots import by_sign as by_sign
from .slots import chance as chance
from .slots import exchanged as exchanged
from .slots import fixed as fixed
from .slots import floor as floor
from .slots import magnitude as magnitude
from .slots import never as never
from .slots import norm as norm
from .slots import pooled as pooled
from .slots import projected as projected
from .slots import sensed as sensed

SLOTS = {  # what each is called with
    "when": ("t",),
    "sense": ("t",),
    "amount": ("sites", "change"),
    "drop": ("site",),
    "grow": ("site", "dropped", "change", "limit", "rng"),
    "share": ("sites", "drops", "grows", "scores"),
}
CANDIDATES = ("sensed", "anywhere")


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
    candidates: Literal["sensed", "anywhere"] = "sensed"  # "anywhere": what grows needs no measurement, as in SET
    keeps_layer_sizes: bool = True  # False: ``share`` moves units between layers

    def __post_init__(self):
        problems = [call_problem(name, getattr(self, name), asks) for name, asks in SLOTS.items()]
        if any(problems):
            raise Unfit(self.name, "this is no topology", reasons=[p for p in problems if p], remedy="docs/extend.md shows every slot")
        if self.candidates not in CANDIDATES:
            raise Unfit(self.name, f"candidates must be one of {', '.join(CANDIDATES)}", got=self.candidates)
        if not self.keeps_layer_sizes and (self.final is not None or self.merge):
            what = "layers that share their growth have sizes of their own, so there is neither a size schedule (final) nor merge"
            raise Unfit(self.name, what, remedy="keeps_layer_sizes=True; or final=None, merge=False")
        if self.stop:
            self._check_events()

    def settings(self) -> dict[str, str]:
        """What it is made of, as strings to compare: a saved run must not go on under other rules."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: getattr(v, "__qualname__", None) or repr(v) for name, v in values.items()}
        return {name: type(values[name]).__qualname__ if " at 0x" in text else text for name, text in shown.items()}

    def size(self, t: int, start: int, final: int) -> int:
        """Units of a layer after step t."""
        return start if start == final else round(cubic(start, final, 0, self.stop)(t))

    @property
    def can_grow(self) -> bool:
        """Whether any unit could ever come: where nothing is sensed and nothing may come from anywhere, it only prunes."""
        return self.candidates == "anywhere" or any(self.sense(t) is not None for t in range(1, self.stop + 1))

    def _check_events(self) -> None:
        """Refuses a schedule that never fires, and one that leaves the optimizer no step: the first step that says otherwise ends both."""
        steps = range(1, self.stop + 1)
        if all(self.when(t) is None for t in steps):
            refuse_no_event(self.name, None, self.stop)
        if all((change := self.when(t)) is not None and not change.move for t in range(1, max(2, self.stop))):
            what = f"every step before stop={self.stop} is an event, and the optimizer skips it (move=False): the weights never move"
            raise Unfit(self.name, what, remedy="every=2 or more, or move=True")


def refuse_no_event(who: str, events: Events | None, stop: int, every: int | None = None) -> None:
    """Refuses a schedule without an event: none given, or an empty one."""
    if not events:
        first = "" if every is None else f": the first would come at step {every}, and none comes at or after stop"
        what = f"no event takes place until stop={stop}, so the support never changes{first}"
        raise Unfit(who, what, remedy="every < stop; or gs.static()")


# -------------------------------------------------------------------- one event


def event(topology: Topology, change: Change, sites: Sequence[Site], rng: torch.Generator | None) -> list[Outcome]:
    """One event over all layers: the new supports, in the order of ``sites``."""
    ties = torch.randint(1 << 62, (len(sites),), generator=rng).tolist()
    sites = [site._replace(ties=number) for site, number in zip(sites, ties, strict=True)]
    able = [i for i, site in enumerate(sites) if site.has_gradient and _can_serve(topology, site)]
    outcomes = [Outcome(site.s, 0, 0, site.sensed if site.has_gradient else 0) for site in sites]
    if able:
        for i, done in zip(able, _exchanged(topology, change, [sites[i] for i in able], rng), strict=True):
            outcomes[i] = done
    return outcomes


def _can_serve(topology: Topology, site: Site) -> bool:
    return _room(topology, site) > 0 or (topology.keeps_layer_sizes and site.s.n > site.size)


def _room(topology: Topology, site: Site) -> int:
    """Units off the support that may grow."""
    return site.s.total - site.s.n if topology.candidates == "anywhere" else site.sensed


def _exchanged(topology: Topology, change: Change, sites: Sequence[Site], rng: torch.Generator | None) -> list[Outcome]:
    wanted = _checked(topology, "amount", sites, topology.amount(sites, change))
    parts = [_part(topology, site, k) for site, k in zip(sites, wanted, strict=True)]
    together = sum(part.grow for part in parts)
    parts = [_offered(topology, change, part, part.grow if topology.keeps_layer_sizes else together, rng) for part in parts]
    parts = [_fitted(part) for part in parts] if topology.keeps_layer_sizes else _fitted_together(parts)
    grows = _shared(topology, parts)
    return [_done(topology, part, grow) for part, grow in zip(parts, grows, strict=True)]


class _Part(NamedTuple):
    """What one layer is to do in an event, and what it has to offer."""

    site: Site
    score: Tensor  # of who goes, (n,)
    k: int  # units to exchange
    shrink: int  # units to drop besides, because the size falls
    more: int  # units to grow besides, because it rises
    merge: bool
    leaving: Tensor  # positions of the units that go; where fewer do than were asked to, the first to go first
    ids: Tensor
    born: Tensor  # scores of the candidates, -inf where nothing speaks for one

    @property
    def drop(self) -> int:
        return self.shrink + (0 if self.merge else self.k)

    @property
    def grow(self) -> int:
        return self.more + self.k

    def stays(self) -> Tensor:
        """Which candidates are units that stay after all: fewer go than when ``grow`` was asked."""
        spared = self.leaving[self.drop :]
        return torch.isin(self.ids, self.site.s.ids()[spared]) if spared.numel() else torch.zeros_like(self.ids, dtype=torch.bool)

    def in_order(self) -> "_Part":
        """With the units that go in the order in which they do: those that go when fewer do are its beginning."""
        keys = tie_key(self.site.s.ids()[self.leaving], self.site.ties)
        return self._replace(leaving=self.leaving[ranking(self.score[self.leaving], keys).flip(0)])

    def offers(self) -> int:
        """Candidates for which something speaks."""
        return int(((self.born > -math.inf) & ~self.stays()).sum())


def _part(topology: Topology, site: Site, k: int) -> _Part:
    """What a layer asked to exchange k units can do: both sides servable."""
    n, s, room, least = site.s.n, site.s, _room(topology, site), topology.min_fan_in
    score = topology.drop(site)
    if tuple(score.shape) != (n,):
        raise Unfit(topology.name, f"drop must give one score for each of the {n} kept units", got=tuple(score.shape))
    size = site.size if topology.keeps_layer_sizes else n  # where layers share, their sizes are the outcome
    droppable = n - (int(s.crow.diff().clamp(max=least).sum()) if least else 0)
    if not topology.keeps_layer_sizes:
        droppable = min(droppable, max(0, n - floor(site)))
    shrink = min(max(0, n - size), droppable)
    more = min(max(0, size - n + (shrink if topology.merge else 0)), room)
    k = max(0, min(k, room - more) if topology.merge else min(k, droppable - shrink, room - more))  # the just dropped are not counted on
    nothing = site.ids[:0], score[:0]
    part = _Part(site, score, k, shrink, more, topology.merge, nothing[0], *nothing)
    return part._replace(leaving=leavers(s, score, part.drop, least, site.ties))


def _offered(topology: Topology, change: Change, part: _Part, limit: int, rng: torch.Generator | None) -> _Part:
    """With candidates and their scores, where any may grow."""
    if not limit:
        return part
    ids, score = topology.grow(part.site, part.leaving, change, limit, rng)
    if ids.dim() != 1 or ids.shape != score.shape:
        what = "grow must give ids and as many scores, (m,) each"
        raise Unfit(topology.name, what, got=(tuple(ids.shape), tuple(score.shape)))
    score = score if score.is_floating_point() else score.double()
    blank = score.isnan() if topology.candidates == "anywhere" else (score == 0) | score.isnan()
    return part._replace(ids=ids, born=score.masked_fill(blank, -math.inf))


def _fitted(part: _Part) -> _Part:
    """Exchanging no more units than there are candidates for which something speaks."""
    if not part.k or part.offers() >= part.grow:
        return part
    part = part.in_order()
    while part.k and (found := part.offers()) < part.grow:
        part = part._replace(k=max(0, found - part.more))
    return part


def _fitted_together(parts: list[_Part]) -> list[_Part]:
    """The same where layers share growth: all exchange fewer, in proportion. Candidates for which nothing speaks are left out."""
    if sum(part.k for part in parts) > sum(part.offers() for part in parts):
        parts = [part.in_order() for part in parts]
    while (total := sum(part.k for part in parts)) > (found := sum(part.offers() for part in parts)):
        fewer = [part.k * found // total for part in parts]
        for i in range(len(parts)):  # what rounding left
            fewer[i] += min(parts[i].k - fewer[i], found - sum(fewer))
        parts = [part._replace(k=k) for part, k in zip(parts, fewer, strict=True)]
    speaks = [(part.born > -math.inf) & ~part.stays() for part in parts]
    return [part._replace(ids=part.ids[these], born=part.born[these]) for part, these in zip(parts, speaks, strict=True)]


def _shared(topology: Topology, parts: Sequence[_Part]) -> list[int]:
    """Units that each layer grows."""
    sites, planned = [part.site for part in parts], [part.grow for part in parts]
    given = topology.share(sites, [part.drop for part in parts], planned, [part.born for part in parts])
    grows = _checked(topology, "share", sites, given)
    if topology.keeps_layer_sizes and grows != planned:
        what = f"share gives the layers {grows} units to grow where their sizes ask for {planned}"
        raise Unfit(topology.name, what, remedy="keeps_layer_sizes=False, if layers are to share")
    if sum(grows) != sum(planned) or any(g > part.ids.numel() for g, part in zip(grows, parts, strict=True)):
        what = f"share gives the layers {grows} units to grow, of {[part.ids.numel() for part in parts]} candidates"
        raise Unfit(topology.name, f"{what}; {sum(planned)} are to grow in all")
    return grows


def _done(topology: Topology, part: _Part, grow: int) -> Outcome:
    site, drop = part.site, part.drop
    if not drop and not grow:
        return Outcome(site.s, 0, 0, site.sensed)
    comes, stays = ~part.stays(), torch.ones(site.s.n, dtype=torch.bool, device=part.score.device)
    stays[part.leaving[:drop]] = False
    s = joined(site.s, stays, part.ids[comes], part.born[comes], grow, site.ties)
    return Outcome(s, drop, grow, site.sensed)


def _checked(topology: Topology, slot: str, sites: Sequence[Site], numbers: Sequence[int]) -> list[int]:
    """Whole numbers, one for each layer, as a list."""
    numbers = list(numbers)
    if len(numbers) != len(sites) or any(n != int(n) or n < 0 for n in numbers):
        raise Unfit(topology.name, f"{slot} must give a whole number of units for each of {len(sites)} layers", got=numbers)
    return [int(n) for n in numbers]
