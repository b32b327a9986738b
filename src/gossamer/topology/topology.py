"""What a topology is: a frozen record. It says when the support changes, what is sensed before, what is dropped, what
grows, and how layers share the growth. ``exchange.py`` says what an event does with it.

Behaviour depends on the data of this record, not on which function a slot holds: a wrapped slot gives the same run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._budgets import Budget
from .._errors import UsageError, call_problem
from .._schedules import cubic
from ..support import Support
from .checks import check_events
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

    Steps count from 1. ``final_density``: the size of the support moves to it along 1 - (1 - p)^3 until step ``stop``,
    and ``budget`` splits it among layers; None: sizes stay.
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
        slots = SLOTS if self.project is None else {**SLOTS, "project": PROJECT}
        problems = [call_problem(name, getattr(self, name), asks) for name, asks in slots.items()]
        if reasons := [p for p in problems if p]:
            remedy = "docs/guides/extend.md shows every slot"
            raise UsageError(self.name, "this is no topology", reasons=reasons, remedy=remedy)
        if self.candidates not in CANDIDATES:
            raise UsageError(self.name, f"candidates must be one of {', '.join(CANDIDATES)}", got=self.candidates)
        if not self.keeps_layer_sizes and (self.final_density is not None or self.merge):
            what = "layers that share their growth have sizes of their own; final_density and merge set sizes too"
            raise UsageError(self.name, what, remedy="keeps_layer_sizes=True; or final_density=None, merge=False")
        if self.stop:
            check_events(self.name, self.when, self.stop)

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
        """Whether any block can ever grow: a topology that senses nothing and takes no candidate only prunes."""
        return self.candidates == "anywhere" or any(self.sense(t) is not None for t in range(1, self.stop + 1))


@runtime_checkable
class TopologyLike(Protocol):
    """What a :class:`~gossamer.Rewirer` takes: a :class:`Topology`, or the settings of one (``CSST``, ...)."""

    def resolve(self, steps: int | None) -> Topology:
        """The topology of a run of so many optimizer steps; None where nobody knows how many. Raises UsageError."""
        ...
