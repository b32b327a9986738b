"""What a topology is: a frozen record. It says when the support changes, what is sensed before, what is dropped, what grows, and how
layers share the growth. ``event.py`` beside it says what an event does with it.

The behaviour hangs on the data of this record alone, not on which function a slot holds: a wrapped or copied slot gives the same run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from .._budgets import Budget
from .._errors import UsageError, call_problem
from .._schedules import Events, cubic
from ..support import Support
from .records import LayerState, Sensing, Update
from .slots import allocate_fixed, drop_by_magnitude, exchange_fraction, grow_sensed, never

SLOTS = {  # what each is called with
    "when": ("t",),
    "sense": ("t",),
    "n_exchange": ("layers", "update"),
    "drop_score": ("layer",),
    "grow_score": ("layer", "dropped", "update", "limit", "rng"),
    "allocate": ("layers", "drops", "grows", "scores"),
}
PROJECT = ("layers", "update", "rng")
CANDIDATES = ("sensed", "anywhere")


@dataclass(frozen=True)
class Topology:
    """How the support changes: what ``CSST``, ``RigL``, ``SET``, ... resolve to, or a record made by hand.

    Steps count from 1. ``final_density`` is the density that the size of the support moves to, from what it is at the start, along
    1 - (1 - p)^3 until step ``stop``. ``budget`` splits it among layers. None: sizes stay.
    """

    name: str
    when: Callable[[int], Update | None] = never
    sense: Callable[[int], Sensing | None] = never
    n_exchange: Callable[[Sequence[LayerState], Update], list[int]] = exchange_fraction
    drop_score: Callable[[LayerState], Tensor] = drop_by_magnitude
    grow_score: Callable[[LayerState, Tensor, Update, int, torch.Generator | None], tuple[Tensor, Tensor]] = grow_sensed
    allocate: Callable[[Sequence[LayerState], Sequence[int], Sequence[int], Sequence[Tensor]], list[int]] = (
        allocate_fixed
    )
    # the new supports of all layers at once, in place of the four slots above: what they cannot express
    project: Callable[[Sequence[LayerState], Update, torch.Generator | None], Sequence[Support]] | None = None
    stop: int = 0  # no event after this step
    final_density: float | None = None
    budget: str | Budget | Mapping[str, float] = "erk"
    merge: bool = False  # grow first, prune back at the next event: between events a layer holds k blocks more
    min_fan_in: int = 0  # incoming blocks that every output unit keeps
    candidates: Literal["sensed", "anywhere"] = "sensed"  # "anywhere": what grows needs no measurement, as in SET
    keeps_layer_sizes: bool = True  # False: ``allocate`` moves blocks between layers

    def __post_init__(self) -> None:
        slots = {**SLOTS, "project": PROJECT} if self.project is not None else SLOTS
        problems = [call_problem(name, getattr(self, name), asks) for name, asks in slots.items()]
        if any(problems):
            reasons = [p for p in problems if p]
            raise UsageError(
                self.name, "this is no topology", reasons=reasons, remedy="docs/guides/extend.md shows every slot"
            )
        if self.candidates not in CANDIDATES:
            raise UsageError(self.name, f"candidates must be one of {', '.join(CANDIDATES)}", got=self.candidates)
        if not self.keeps_layer_sizes and (self.final_density is not None or self.merge):
            what = "layers that share their growth have sizes of their own; final_density and merge set sizes too"
            raise UsageError(self.name, what, remedy="keeps_layer_sizes=True; or final_density=None, merge=False")
        if self.stop:
            self._check_events()

    def resolve(self, steps: int | None) -> "Topology":
        """Itself: its steps are counted already."""
        return self

    def settings(self) -> dict[str, str]:
        """What it is made of, as strings to compare: a saved run must not go on under other rules."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: getattr(v, "__qualname__", None) or repr(v) for name, v in values.items()}
        return {name: type(values[name]).__qualname__ if " at 0x" in text else text for name, text in shown.items()}

    def size(self, t: int, start: int, final: int) -> int:
        """Blocks of a layer after step t."""
        return start if start == final else round(cubic(start, final, 0, self.stop)(t))

    @property
    def can_grow(self) -> bool:
        """Whether any block can ever grow: a topology that senses nothing, and takes no candidate from anywhere, only prunes."""
        return self.candidates == "anywhere" or any(self.sense(t) is not None for t in range(1, self.stop + 1))

    def _check_events(self) -> None:
        """Refuses a schedule without any event, and one that leaves the optimizer no step."""
        if all(self.when(t) is None for t in range(1, self.stop + 1)):
            refuse_no_event(self.name, None, self.stop)
        before = range(1, max(2, self.stop))
        if all((update := self.when(t)) is not None and not update.step_optimizer for t in before):
            skipped = "is an event, and the optimizer skips it (step_optimizer=False)"
            what = f"every step before stop={self.stop} {skipped}: the weights never move"
            raise UsageError(self.name, what, remedy="every=2 or more, or step_optimizer=True")


def refuse_no_event(who: str, events: Events | None, stop: int, every: int | None = None) -> None:
    """Refuses a schedule without an event: none given, or an empty one."""
    if not events:
        first = "" if every is None else f": the first would come at step {every}, and none comes at or after stop"
        first += ". stop=1 is one step, stop=1.0 the whole run" if stop == 1 else ""
        what = f"no event takes place until stop={stop}, so the support never changes{first}"
        raise UsageError(who, what, remedy="every < stop; or gs.Static()")
