"""The record of a topology: when the support changes, what is sensed before, what is dropped, what grows, and how
layers share the growth. ``exchange.py`` holds the event that uses it.

No code compares the functions in the slots with known functions: a wrapped slot gives the same run.
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

SLOTS = {  # the arguments of each
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
    """How the support changes. ``CSST``, ``RigL``, ``SET``, ... resolve to it, or you make it by hand.

    Steps count from 1. The density moves to ``final_density`` along 1 - (1 - p)^3 until step ``stop``, and ``budget``
    splits it among layers. If it is None, sizes stay.
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
    # the new supports of all layers at once, in place of the four slots above, for methods they cannot express
    project: Callable[[Sequence[LayerState], Update, torch.Generator | None], Sequence[Support]] | None = None
    stop: int = 0  # no event after this step
    final_density: float | None = None
    budget: str | Budget | Mapping[str, float] = "erk"
    merge: bool = False  # grow first, prune back at the next event: between events a layer holds k blocks more
    min_fan_in: int = 0  # incoming blocks that every output unit keeps
    candidates: Literal["sensed", "anywhere"] = "sensed"  # "anywhere": any block may grow, without sensing, as in SET
    keeps_layer_sizes: bool = True  # False: ``allocate`` moves blocks between layers

    def __post_init__(self) -> None:
        slots = SLOTS if self.project is None else {**SLOTS, "project": PROJECT}
        problems = [call_problem(name, getattr(self, name), asks) for name, asks in slots.items()]
        if reasons := [p for p in problems if p]:
            remedy = "docs/guides/extend.md shows every slot"
            raise UsageError(self.name, "this is not a topology", reasons=reasons, remedy=remedy)
        if self.candidates not in CANDIDATES:
            raise UsageError(self.name, f"candidates must be one of {', '.join(CANDIDATES)}", got=self.candidates)
        if not self.keeps_layer_sizes and (self.final_density is not None or self.merge):
            what = "keeps_layer_sizes=False lets allocate set the sizes; final_density and merge set them too"
            raise UsageError(self.name, what, remedy="keeps_layer_sizes=True; or final_density=None, merge=False")
        if self.stop:
            check_events(self.name, self.when, self.stop)

    def resolve(self, steps: int | None) -> "Topology":
        """Returns itself: its steps are numbers already."""
        return self

    def settings(self) -> dict[str, str]:
        """All fields as strings. A saved run compares them: it must not continue with other settings."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {name: getattr(v, "__qualname__", None) or repr(v) for name, v in values.items()}
        return {name: type(values[name]).__qualname__ if " at 0x" in text else text for name, text in shown.items()}

    def size(self, t: int, start: int, final: int) -> int:
        """The number of blocks of a layer after step t."""
        return start if start == final else round(cubic(start, final, 0, self.stop)(t))

    @property
    def can_grow(self) -> bool:
        """Whether any block can ever grow. A topology without sensing and without candidates only prunes."""
        return self.candidates == "anywhere" or any(self.sense(t) is not None for t in range(1, self.stop + 1))


@runtime_checkable
class TopologyLike(Protocol):
    """What a :class:`~gossamer.Rewirer` takes: a :class:`Topology`, or the settings of a method (``CSST``, ...)."""

    def resolve(self, steps: int | None) -> Topology:
        """The topology for a run of ``steps`` optimizer steps; None if the number is not known. Raises UsageError."""
        ...
