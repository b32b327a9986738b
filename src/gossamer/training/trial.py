"""Finds out by trial what an optimizer does with a new parameter. No optimizer is known by name.

A *counterpart* is the same optimizer, with the same settings, over other parameters. It steps a *scratch parameter* of
one block. A step with a zero gradient gives the state of a new parameter. To find out whether the step count matters,
two scratch parameters take the same few steps: one with its own step count, one with the count of an old parameter.
"""

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .._errors import UsageError
from ..layers import SparseLayer

SCALING = ("grad_scale", "found_inf")  # set by a GradScaler; a counterpart gets unscaled gradients
REMEMBERED = 64  # most answers that are kept
HORIZON = 5000  # steps after which the averages of a parameter no longer depend on their start
YOUNG = 100  # steps: a parameter of twice this age is compared with a new one
TRIED = 5  # steps that are compared
ALIKE = 1e-3  # moves with at most this relative difference count as equal

State: TypeAlias = dict[str, Any]  # a torch optimizer's state of one parameter, by name
T = TypeVar("T")


class Trial:
    """Trials of an optimizer on the values of a layer. Results are kept until a setting changes.

    Args:
        optimizer: any torch optimizer.
        layers: the sparse layers by name; the optimizer holds their values.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Mapping[str, SparseLayer]):
        self.optimizer, self.layers = optimizer, layers
        self._answers: dict[tuple[object, ...], Any] = {}  # by the question and everything that the answer depends on

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_answers": {}}  # a copy has another optimizer

    # ---------------------------------------------------------------- questions

    def needs_closure(self) -> bool:
        """Whether the optimizer steps only with a closure. Then no event takes place, and no block is born."""
        closure = inspect.signature(type(self.optimizer).step).parameters.get("closure")
        return closure is not None and closure.default is inspect.Parameter.empty

    def initial(self, name: str) -> dict[str, Tensor]:
        """The state of a block before its first step, by entry, each with a first dimension of 1.

        Raises: UsageError if the optimizer cannot move a scratch parameter.
        """
        return self._answer(name, "initial", self._find_initial)

    def counts(self, name: str) -> bool:
        """Whether a block's first steps depend on the parameter's step count."""
        return self._answer(name, "counts", self._find_counts)

    def course(self, name: str, steps: int) -> list[State]:
        """The states of a scratch parameter after 1, 2, ... steps with a constant gradient."""

        def begin(name: str) -> tuple[nn.Parameter, torch.optim.Optimizer, list[State]]:
            scratch = self._scratch(name)
            return scratch, self.counterpart({name: [scratch]}, {}, moves=True), []

        scratch, counterpart, course = self._answer(name, "course", begin)
        counterpart.param_groups = self._groups({name: [scratch]}, moves=True)
        while len(course) < steps:
            scratch.grad = torch.ones_like(scratch)
            counterpart.step()
            course.append({key: copied(entry) for key, entry in counterpart.state[scratch].items()})
        return course

    def scales(self, name: str, age: int, steps: int) -> dict[str, float]:
        """By entry: the factor that converts the state of a block of this age to a parameter's step count ``steps``.

        It is the ratio of the entries after ``steps`` and after ``age`` steps with a constant gradient; or 1, if that
        predicts the next move better.
        """
        steps = min(max(steps, 1), HORIZON)
        course = self.course(name, max(age + 1, steps))
        young, old = course[age - 1], course[steps - 1]
        elementwise = [key for key, t in young.items() if torch.is_tensor(t) and t.dim() > 0]
        ratio = {key: _ratio(young[key], old[key]) for key in elementwise}
        true = self._next_move(name, young)
        count = {key: entry for key, entry in old.items() if key not in elementwise}

        def error(scales: dict[str, float]) -> float:
            scaled = {key: young[key] * scales[key] for key in elementwise}
            return abs(self._next_move(name, {**count, **scaled}) - true)

        return min((ratio, dict.fromkeys(elementwise, 1.0)), key=error)

    # ---------------------------------------------------------------- trials

    def counterpart(
        self, members: Mapping[str, list[nn.Parameter]], state: Mapping[nn.Parameter, State], moves: bool = False
    ) -> torch.optim.Optimizer:
        """The same optimizer, with the same settings, over other parameters. It calls no hooks, and schedulers do not
        count its steps.

        Args:
            members: the parameters, by the layer whose group gives the settings.
            state: by parameter.
            moves: whether a step size of 0 is replaced by a positive one, so that a step moves something.
        """
        counterpart: Any = object.__new__(type(self.optimizer))  # the arguments of its constructor are not known
        left = {*vars(torch.optim.Optimizer), *SCALING}  # attributes that a scheduler or a GradScaler has set
        for key, value in vars(self.optimizer).items():
            if key not in left:
                vars(counterpart)[key] = value
        counterpart._optimizer_step_pre_hooks, counterpart._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        counterpart.state = defaultdict(dict, state)
        counterpart.param_groups = self._groups(members, moves)
        return counterpart

    def group_of(self, name: str) -> int:
        """The index of the parameter group that holds a layer's values."""
        values, groups = self.layers[name].values, self.optimizer.param_groups
        return next(i for i, group in enumerate(groups) if any(p is values for p in group["params"]))

    def tile(self, name: str) -> tuple[int, ...]:
        """Shape of a block of values: () or (h, w)."""
        block = self.layers[name].block
        return () if block == (1, 1) else block

    def _answer(self, name: str, question: str, find: Callable[[str], T]) -> T:
        group = self.optimizer.param_groups[self.group_of(name)]
        settings = repr([(key, group.get(key)) for key in self.optimizer.defaults if key != "lr"])
        lr = group["lr"] if question == "initial" else None
        about = (question, settings, self.layers[name].values.dtype, self.tile(name), lr)
        if about not in self._answers:
            if len(self._answers) >= REMEMBERED:  # a setting may change at every step (cycled momentum)
                self._answers.clear()
            self._answers[about] = find(name)
        return self._answers[about]

    def _scratch(self, name: str) -> nn.Parameter:
        return compact_parameter(self.layers[name].values.detach().new_zeros(1, *self.tile(name)))

    def _find_initial(self, name: str) -> dict[str, Tensor]:
        scratch = self._scratch(name)
        counterpart = self.counterpart({name: [scratch]}, {})
        scratch.grad = torch.zeros_like(scratch)
        try:
            counterpart.step()
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
            kind = type(self.optimizer).__name__
            what = f"{kind} cannot move a scratch parameter, so the state of a new parameter is not known: {error}"
            raise UsageError("Rewirer", what, remedy='newborn="zero"') from error
        return {key: t for key, t in counterpart.state[scratch].items() if is_elementwise(t, scratch)}

    def _find_counts(self, name: str) -> bool:
        fresh, other = self._scratch(name), self._scratch(name)
        old = self.course(name, 2 * YOUNG)[-1]
        seeded = {key: t.clone() for key, t in self.initial(name).items()}
        count = {key: copied(entry) for key, entry in old.items() if not is_elementwise(entry, other)}
        start = {other: {**count, **seeded}} if count or seeded else {}
        both = (
            (fresh, self.counterpart({name: [fresh]}, {}, moves=True)),
            (other, self.counterpart({name: [other]}, start, moves=True)),
        )
        for t in range(TRIED):
            moves: list[Tensor] = []
            for scratch, counterpart in both:
                before = scratch.detach().clone()
                scratch.grad = torch.full_like(scratch, 0.1 * (1 + t % 2))
                counterpart.step()
                moves.append(scratch.detach() - before)
            if bool(((moves[0] - moves[1]).abs() > ALIKE * moves[0].abs()).any()):
                return True
        return False

    def _groups(self, members: Mapping[str, list[nn.Parameter]], moves: bool = False) -> list[dict[str, Any]]:
        """The parameter groups with other parameters."""
        params: list[list[nn.Parameter]] = [[] for _ in self.optimizer.param_groups]
        for name, parameters in members.items():
            params[self.group_of(name)] += parameters
        groups = [{**group, "params": own} for group, own in zip(self.optimizer.param_groups, params, strict=True)]
        return [{**group, "lr": _positive(group["lr"])} for group in groups] if moves else groups

    def _next_move(self, name: str, state: Mapping[str, Any]) -> float:
        scratch = self._scratch(name)
        start = {scratch: {key: copied(entry) for key, entry in state.items()}}
        counterpart = self.counterpart({name: [scratch]}, start, moves=True)
        scratch.grad = torch.ones_like(scratch)
        counterpart.step()
        return float(scratch.detach().flatten()[0])


def compact_parameter(values: Tensor) -> nn.Parameter:
    """A parameter that is marked as compact values of a sparse layer."""
    parameter: Any = nn.Parameter(values)  # torch declares no such attribute
    parameter.compact = True
    return parameter


def is_elementwise(entry: object, p: Tensor) -> bool:
    """Whether an entry of the state is indexed by the blocks of the parameter."""
    return isinstance(entry, Tensor) and entry.dim() > 0 and entry.shape[0] == p.shape[0]


def copied(entry: Any) -> Any:
    """A copy of an entry of a state: a tensor, or a number."""
    return entry.clone() if torch.is_tensor(entry) else entry


def _positive(lr: Any) -> Any:
    """The step size, a number or a tensor; 1e-3 in place of 0 (warm-up)."""
    if float(lr) > 0.0:
        return lr
    return torch.full_like(lr, 1e-3) if torch.is_tensor(lr) else 1e-3


def _ratio(young: Tensor, old: Tensor) -> float:
    a, b = float(young.flatten()[0]), float(old.flatten()[0])
    return b / a if a else 1.0
