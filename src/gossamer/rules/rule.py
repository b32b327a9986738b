"""The protocol of a rule: a frozen record of settings that defines how values change under a penalty.

    init(w, strength)              the state of one tensor before its first step, a dict of tensors
    update_(w, g, state, step)     one step of many tensors: the lines of the paper's equations, on lists of tensors

Every rule has the members of :class:`Rule`. Some rules also have those of :class:`Latent` or :class:`MirrorRule`.
"""

# pyright: strict

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .._schedules import Schedule
from ..penalties import Penalty

State = dict[str, list[Tensor]]  # the state of a rule: by name, one tensor for each parameter, in the same order


class StepInfo(NamedTuple):
    """What a rule gets about a step."""

    t: int  # step of the run, from 1: the argument of schedules
    t_group: int  # step of this group, from 1; a group may join a run later
    lr: float  # s_t
    largest_lr: float  # the largest step size so far
    strength: float  # factor on the penalty
    sums: dict[str, float]  # numbers that the rule keeps for all tensors together; the rule may change them


@runtime_checkable
class Rule(Protocol):
    """The members of every rule.

    ``needs_dense``: a zero weight may become non-zero again, so the rule needs dense storage.

    ``zeros_follow_state``: the state and the strength alone decide which weights are zero. A change of the strength
    then acts on the zeros at once. Otherwise it takes several steps.
    """

    @property
    def penalty(self) -> Penalty:
        """The penalty R."""
        ...

    needs_dense: ClassVar[bool]
    zeros_follow_state: ClassVar[bool]

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        """The state of one tensor before its first step. ``strength`` is the factor on the penalty at that time."""
        ...

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, step: StepInfo) -> None:
        """One step. Changes ``w`` and ``state`` in place, and does not change ``g``."""
        ...

    def zero_thresholds(self, w: list[Tensor], state: State, step: StepInfo) -> list[Tensor]:
        """For each entry, the smallest strength at which the weight would be zero now. The shapes are those of ``w``.

        See ``Penalty.zero_threshold``. If there is a last gradient, it is ``state["g"]``.
        """
        ...

    def schedules(self) -> dict[str, Schedule]:
        """The settings that are functions of the step, by name. All have values in [0, 1]."""
        ...


@runtime_checkable
class Latent(Protocol):
    """A rule whose state determines its weights.

    If other code writes to the weights, the next step would undo it. So the optimizer calls :meth:`restart_` first.
    """

    def restart_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Changes ``state`` in place so that it gives the weights ``w``. Does not change ``w``."""
        ...


@runtime_checkable
class MirrorRule(Rule, Latent, Protocol):
    """A rule of mirror descent: its steps change a mirror variable v, ``state["v"]``, and v determines the weights.

    :class:`~gossamer.Multilevel` calls the two parts of ``update_`` separately.
    """

    def descend_(self, g: list[Tensor], state: State, step: StepInfo) -> None:
        """The step of the mirror variable: changes ``state`` in place."""
        ...

    def show_(self, w: list[Tensor], state: State, step: StepInfo) -> None:
        """Writes the weights that belong to the mirror variable into ``w``."""
        ...
