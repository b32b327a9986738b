"""What a rule is: a frozen record of settings that says how values change under a penalty.

    init(w, strength)              the state of one tensor before its first step, a dict of tensors
    update_(w, g, state, step)     one step of many tensors: the lines of the paper's equations, on lists of tensors

:class:`Rule` is what the optimizer asks of every rule. :class:`Latent` and :class:`MirrorRule` say what some rules
have besides.
"""

# pyright: strict

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .._schedules import Schedule
from ..penalties import Penalty

State = dict[str, list[Tensor]]  # what a rule keeps: by name, one tensor for each parameter, in their order


class StepInfo(NamedTuple):
    """What a rule is told about a step."""

    t: int  # step of the run, from 1: the argument of schedules
    t_group: int  # step of this group, from 1; a group may join a run later
    lr: float  # s_t
    largest_lr: float  # the largest step size so far
    strength: float  # factor on the penalty
    sums: dict[str, float]  # numbers that the rule keeps for all tensors together; the rule may change them


@runtime_checkable
class Rule(Protocol):
    """How values change.

    ``needs_dense``: a weight that is zero may come back, so the rule needs dense storage.

    ``zeros_follow_state``: the state and the strength alone decide which weights are zero, so the zeros follow a change
    of strength at once. Otherwise weights take several steps to follow it.
    """

    @property
    def penalty(self) -> Penalty:
        """R."""
        ...

    needs_dense: ClassVar[bool]
    zeros_follow_state: ClassVar[bool]

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        """State of one tensor before its first step. ``strength`` is the factor on the penalty at that time."""
        ...

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, step: StepInfo) -> None:
        """One step: changes ``w`` and ``state`` in place and leaves ``g`` as it is."""
        ...

    def zero_thresholds(self, w: list[Tensor], state: State, step: StepInfo) -> list[Tensor]:
        """Per entry, the smallest strength at which the weight would be zero now; shaped like ``w``.

        See ``Penalty.zero_threshold``. Where there is a last gradient, ``state`` has it as ``"g"``.
        """
        ...

    def schedules(self) -> dict[str, Schedule]:
        """The settings that are functions of the step, by name. All have values in [0, 1]."""
        ...


@runtime_checkable
class Latent(Protocol):
    """A rule whose state determines its weights.

    If other code writes the weights, the next step would undo that. So the optimizer calls :meth:`restart_` first.
    """

    def restart_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Changes ``state`` in place so that it gives the weights ``w``. Leaves ``w`` as it is."""
        ...


@runtime_checkable
class MirrorRule(Rule, Latent, Protocol):
    """A rule of mirror descent: its weights are the image of a mirror variable, ``state["v"]``, and its steps change v.

    :class:`~gossamer.Multilevel` calls the two halves of ``update_`` one by one.
    """

    def descend_(self, g: list[Tensor], state: State, step: StepInfo) -> None:
        """The step of the mirror variable: changes ``state`` in place."""
        ...

    def show_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Writes the weights that belong to the mirror variable into ``w``."""
        ...
