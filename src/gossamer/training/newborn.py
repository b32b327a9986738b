"""What the optimizer knows of a connection that is born: nothing, as of a fresh parameter.

    zero      zero state under the parameter's step count. Adam then takes m / (1 - beta1^T) for an average of T steps where it is one of
              a few: first steps of up to 3 lr ("cold start"); Rprop's step size of 0 never grows; Adagrad forgets its initial sum.
    fresh     the state and the step count of a parameter of its own.
    sensed    fresh, and the gradient that was sensed at birth counts as the first step's, without a move.
    auto      zero where the optimizer's step count matters (Adam and its kind: measured, docs/methods/newborn.md); fresh elsewhere.

No optimizer is known by name. What a fresh state is, the optimizer is asked: a scratch parameter takes a step by a gradient of zero, and
what its state then holds is the initial accumulator. Whether the step count matters is asked too: two scratch parameters take the same
few steps, one with a count of its own, one with an old one's. Where they move alike, the initial state is all there is to do. Where they do
not, the newborn of an event are parameters of their own for AGE steps, moved by a counterpart of the optimizer with the same settings after
each of its steps. Then they join the parameter, their state scaled, entry by entry, from what a constant gradient makes of it in AGE
steps to what it makes of it in the parameter's T: for Adam by (1 - beta^T) / (1 - beta^AGE), so that the next move is the one they would
have made.

Cost: a step of the counterpart, O(newborn of the last AGE steps).
"""

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError, nearest
from ..layers import SparseLayer

NEWBORN = ("auto", "fresh", "zero", "sensed")
AGE = 100  # steps for which newborn have a count of their own
SCALING = ("grad_scale", "found_inf")  # by then the gradients are unscaled
REMEMBERED = 64  # answers
HORIZON = 5000  # steps after which a parameter's averages no longer know that they once began
TRIED = 5  # steps that are compared
ALIKE = 1e-3  # largest relative difference between moves that are called the same


@dataclass
class Cohort:
    """The connections of one layer that were born at the same event."""

    name: str
    ids: Tensor  # (k,) int64, sorted
    values: nn.Parameter  # (k, *tile)
    age: int = 0


class Newborn:
    """Gives newborn connections the optimizer's state of a fresh parameter.

    Args:
        optimizer: any torch optimizer.
        layers: the sparse layers by name, their values among its parameters.
        mode: ``"auto"``, ``"fresh"``, ``"zero"`` or ``"sensed"``.

    Raises: UsageError if the optimizer cannot move a scratch parameter.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Mapping[str, SparseLayer], mode: str):
        if mode not in NEWBORN:
            raise UsageError(
                "Rewirer",
                f"unknown newborn {mode!r}{nearest(str(mode), NEWBORN)}",
                remedy=f"one of {', '.join(NEWBORN)}",
            )
        self.optimizer, self.layers, self.mode = optimizer, layers, mode
        self.cohorts: list[Cohort] = []
        self._state: dict[nn.Parameter, dict[str, Any]] = {}  # of the cohorts' values
        self._answers: dict[Any, Any] = {}  # of the optimizer, by what it was asked about
        for name, layer in layers.items():
            if layer.values.requires_grad:
                self.initial(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_answers": {}}  # a copy asks again

    # ---------------------------------------------------------------- what the optimizer is asked

    def initial(self, name: str) -> dict[str, Tensor] | None:
        """The state of a block of this layer before its first step, by name, each with a first dimension of 1; None is zeros."""
        if self.mode == "zero" or self._needs_closure():
            return None  # with a closure there is no event, and no birth
        initial = self._asked(name, "initial", self._find_initial)
        return None if self.mode == "auto" and self.counts(name) else initial

    def counts(self, name: str) -> bool:
        """Whether a block's first steps depend on the parameter's step count."""
        return self._asked(name, "counts", self._find_counts)

    def _needs_closure(self) -> bool:
        closure = inspect.signature(type(self.optimizer).step).parameters.get("closure")
        return closure is not None and closure.default is inspect.Parameter.empty

    def _asked(self, name: str, what: str, find: Any) -> Any:
        group = self.optimizer.param_groups[self._group(name)]
        values = self.layers[name].values
        settings = repr([(key, group.get(key)) for key in self.optimizer.defaults if key != "lr"])
        about = (what, settings, values.dtype, self._tile(name), group["lr"] if what == "initial" else None)
        if about not in self._answers:
            if len(self._answers) >= REMEMBERED:  # settings that change at every step (cycled momentum)
                self._answers.clear()
            self._answers[about] = find(name)
        return self._answers[about]

    def _group(self, name: str) -> int:
        values = self.layers[name].values
        return next(
            i for i, group in enumerate(self.optimizer.param_groups) if any(p is values for p in group["params"])
        )

    def _tile(self, name: str) -> tuple[int, ...]:
        block = self.layers[name].block
        return () if block == (1, 1) else block

    def _scratch(self, name: str) -> nn.Parameter:
        values = self.layers[name].values
        scratch = nn.Parameter(values.detach().new_zeros(1, *self._tile(name)))
        scratch.compact = True  # type: ignore[attr-defined]
        return scratch

    def _find_initial(self, name: str) -> dict[str, Tensor]:
        scratch = self._scratch(name)
        counterpart = self._counterpart({name: [scratch]}, {})
        scratch.grad = torch.zeros_like(scratch)
        try:
            counterpart.step()
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
            what = f"{type(self.optimizer).__name__} cannot move a connection by itself, so what is fresh is not known: {error}"
            raise UsageError("Rewirer", what, remedy='newborn="zero"') from error
        return {key: t for key, t in counterpart.state[scratch].items() if _is_elementwise(t, scratch)}

    def _find_counts(self, name: str) -> bool:
        fresh, other = self._scratch(name), self._scratch(name)
        old = self._course(name, 2 * AGE)[-1]
        seeded = {key: t.clone() for key, t in self._asked(name, "initial", self._find_initial).items()}
        count = {key: _copied(entry) for key, entry in old.items() if not _is_elementwise(entry, other)}
        start = {other: {**count, **seeded}} if count or seeded else {}
        counterparts = (
            self._counterpart({name: [fresh]}, {}, asked=True),
            self._counterpart({name: [other]}, start, asked=True),
        )
        for t in range(TRIED):
            before = fresh.detach().clone(), other.detach().clone()
            for scratch, counterpart in zip((fresh, other), counterparts, strict=True):
                scratch.grad = torch.full_like(scratch, 0.1 * (1 + t % 2))
                counterpart.step()
            mine, theirs = (p.detach() - b for p, b in zip((fresh, other), before, strict=True))
            if bool(((mine - theirs).abs() > ALIKE * mine.abs()).any()):
                return True
        return False

    def _course(self, name: str, steps: int) -> list[dict[str, Any]]:
        """The states of a scratch parameter after 1, 2, ... steps by a constant gradient."""

        def start(_name: str) -> tuple[nn.Parameter, torch.optim.Optimizer, list[dict[str, Any]]]:
            scratch = self._scratch(name)
            return scratch, self._counterpart({name: [scratch]}, {}, asked=True), []

        scratch, counterpart, course = self._asked(name, "course", start)
        counterpart.param_groups = self._settings({name: [scratch]}, asked=True)
        while len(course) < steps:
            scratch.grad = torch.ones_like(scratch)
            counterpart.step()
            course.append({key: _copied(entry) for key, entry in counterpart.state[scratch].items()})
        return course

    # ---------------------------------------------------------------- a life

    @torch.no_grad()
    def born(self, name: str, ids: Tensor, sensed: Tensor | None) -> None:
        """Connections are born at blocks ``ids``; ``sensed``: their gradients (k, *tile), where they are known."""
        if not ids.numel() or self.initial(name) is None or not self.counts(name):
            return
        cohort = Cohort(
            name, ids, nn.Parameter(self.layers[name].values.detach().new_zeros(ids.numel(), *self._tile(name)))
        )
        cohort.values.compact = True  # type: ignore[attr-defined]
        self.cohorts.append(cohort)
        if self.mode == "sensed" and sensed is not None:
            cohort.values.grad = sensed.to(cohort.values.dtype).clone()
            self._step([cohort])
            cohort.values.zero_()
            cohort.age = 1

    @torch.no_grad()
    def moved(self, name: str) -> None:
        """The layer's support has changed: those that left are forgotten."""
        s = self.layers[name].support
        for cohort in [c for c in self.cohorts if c.name == name]:
            stay = s.find(cohort.ids) >= 0
            if bool(stay.all()):
                continue
            state = self._state.pop(cohort.values, {})
            kept = {key: t[stay] if _is_elementwise(t, cohort.values) else t for key, t in state.items()}
            cohort.ids, cohort.values = cohort.ids[stay], nn.Parameter(cohort.values.detach()[stay])
            cohort.values.compact = True  # type: ignore[attr-defined]
            if kept:
                self._state[cohort.values] = kept
        self.cohorts = [c for c in self.cohorts if c.ids.numel()]

    @torch.no_grad()
    def before_step(self) -> None:
        """The optimizer is about to step: what it will do to the newborn is set aside."""
        for cohort in self.cohorts:
            layer = self.layers[cohort.name]
            cohort.values.copy_(self._read(layer, layer.values, self._places(cohort)))

    @torch.no_grad()
    def after_step(self) -> None:
        """It has stepped: the newborn step by themselves."""
        skipped = vars(self.optimizer).get(
            "found_inf"
        )  # set by a GradScaler for fused optimizers, which skip the step themselves
        if skipped is not None and bool(skipped):
            return
        for cohort in self.cohorts:
            layer = self.layers[cohort.name]
            if (grad := layer.values.grad) is not None:
                cohort.values.grad = self._read(layer, grad, self._places(cohort)).clone()
        alive = [cohort for cohort in self.cohorts if cohort.values.grad is not None]
        if not alive:
            return
        self._step(alive)
        for cohort in alive:
            layer = self.layers[cohort.name]
            self._write(layer, layer.values, self._places(cohort), cohort.values.detach())
            cohort.values.grad = None
            cohort.age += 1
            if cohort.age >= AGE:
                self._join(cohort)

    def state_dict(self) -> list[dict[str, Any]]:
        """All that is needed to resume bit for bit."""
        return [
            {"layer": c.name, "ids": c.ids, "age": c.age, "state": dict(self._state.get(c.values, {}))}
            for c in self.cohorts
        ]

    def problems(self, state: Any) -> list[str]:
        """Why a saved ``{"mode", "cohorts"}`` cannot be taken over, in sentences; [] if it may go on."""
        if (
            not isinstance(state, dict)
            or set(state) != {"mode", "cohorts"}
            or not isinstance(state["cohorts"], (list, tuple))
        ):
            return ["newborn is a mode and a list of cohorts"]
        if state["mode"] != self.mode:
            return [f"newborn was {state['mode']!r}, is {self.mode!r}"]
        for saved in state["cohorts"]:
            if (
                not isinstance(saved, dict)
                or set(saved) != {"layer", "ids", "age", "state"}
                or saved["layer"] not in self.layers
            ):
                return ["a cohort is of a layer, and has ids, an age and a state"]
            s, ids = self.layers[saved["layer"]].support, saved["ids"]
            if not torch.is_tensor(ids) or ids.dtype != torch.int64 or ids.dim() != 1 or not ids.numel():
                return ["the ids of a cohort are a vector of int64"]
            if int(ids.min()) < 0 or int(ids.max()) >= s.total or bool((ids.diff() <= 0).any()):
                return [f"the ids of a cohort lie in [0, {s.total}) and increase"]
            if type(saved["age"]) is not int or not 0 <= saved["age"] < AGE:
                return [f"the age of a cohort is a whole number in [0, {AGE})"]
            if bool(saved["age"]) != bool(saved["state"]) or not self._is_state(
                saved["layer"], ids.numel(), saved["state"]
            ):
                return [
                    f"the state of a cohort is not one that {type(self.optimizer).__name__} keeps of {ids.numel()} connections"
                ]
        return []

    def _is_state(self, name: str, k: int, state: Any) -> bool:
        """Whether it is the state of k connections, as the optimizer keeps it of a scratch parameter; or none, before the first step."""
        expected = self._course(name, 1)[0]
        if not isinstance(state, dict) or (state and state.keys() != expected.keys()):
            return False
        for key, entry in state.items():
            like = expected[key]
            if not torch.is_tensor(like):
                if type(entry) is not type(like):
                    return False
                continue
            shape = (k, *like.shape[1:]) if like.dim() else ()
            if (
                not torch.is_tensor(entry)
                or entry.dtype != like.dtype
                or entry.shape != shape
                or bool(entry.isnan().any())
            ):
                return False
        return True

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Takes over a state."""
        self.cohorts, self._state = [], {}
        for saved in state:
            values = self.layers[saved["layer"]].values
            mine = nn.Parameter(values.detach().new_zeros(saved["ids"].numel(), *self._tile(saved["layer"])))
            mine.compact = True  # type: ignore[attr-defined]
            self.cohorts.append(Cohort(saved["layer"], saved["ids"].clone(), mine, int(saved["age"])))
            if saved["state"]:
                self._state[mine] = {key: _copied(entry) for key, entry in saved["state"].items()}

    # ---------------------------------------------------------------- details

    def _step(self, cohorts: list[Cohort]) -> None:
        members: dict[str, list[nn.Parameter]] = {}
        for cohort in cohorts:
            members.setdefault(cohort.name, []).append(cohort.values)
        counterpart = self._counterpart(members, self._state)
        with torch.enable_grad():
            counterpart.step()
        self._state = {c.values: counterpart.state[c.values] for c in self.cohorts if counterpart.state.get(c.values)}

    def _counterpart(
        self,
        members: Mapping[str, list[nn.Parameter]],
        state: Mapping[nn.Parameter, dict[str, Any]],
        asked: bool = False,
    ) -> torch.optim.Optimizer:
        """The same optimizer, settings and all, over other parameters; it calls no hook and counts for no scheduler."""
        counterpart: Any = object.__new__(type(self.optimizer))
        left = {*vars(torch.optim.Optimizer), *SCALING}  # what a scheduler or a GradScaler has put on the instance
        vars(counterpart).update({key: value for key, value in vars(self.optimizer).items() if key not in left})
        counterpart._optimizer_step_pre_hooks, counterpart._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        counterpart.state = defaultdict(dict, state)
        counterpart.param_groups = self._settings(members, asked)
        return counterpart

    def _settings(self, members: Mapping[str, list[nn.Parameter]], asked: bool = False) -> list[dict[str, Any]]:
        """The groups with other parameters; ``asked``: the step size is positive, or there would be nothing to see."""
        params: list[list[nn.Parameter]] = [[] for _ in self.optimizer.param_groups]
        for name, mine in members.items():
            params[self._group(name)] += mine
        groups = [{**group, "params": mine} for group, mine in zip(self.optimizer.param_groups, params, strict=True)]
        return [{**group, "lr": _positive(group["lr"])} for group in groups] if asked else groups

    def _join(self, cohort: Cohort) -> None:
        """The newborn become part of the parameter: their state is brought to its step count."""
        self.cohorts = [c for c in self.cohorts if c is not cohort]
        mine, layer = self._state.pop(cohort.values, {}), self.layers[cohort.name]
        theirs, at = self.optimizer.state.get(layer.values, {}), self._places(cohort)
        scales = self._scales(cohort, theirs)
        for key, t in mine.items():
            entry = theirs.get(key)
            if torch.is_tensor(entry) and _is_elementwise(t, cohort.values):
                self._write(layer, entry, at, t * scales.get(key, 1.0))

    def _scales(self, cohort: Cohort, theirs: Mapping[str, Any]) -> dict[str, float]:
        """By entry: the factor that brings a state of this age to the parameter's; 1 where that continues better."""
        steps = int(float(theirs.get("step", HORIZON)))
        course = self._course(cohort.name, max(cohort.age + 1, min(max(steps, 1), HORIZON)))
        young, old = course[cohort.age - 1], course[min(max(steps, 1), HORIZON) - 1]
        elementwise = [key for key, t in young.items() if torch.is_tensor(t) and t.dim() > 0]
        ratio = {key: _ratio(young[key], old[key]) for key in elementwise}
        true = self._next_move(cohort.name, young)
        count = {key: entry for key, entry in old.items() if key not in elementwise}
        errors = []
        for scales in (ratio, dict.fromkeys(elementwise, 1.0)):
            move = self._next_move(cohort.name, {**count, **{key: young[key] * scales[key] for key in elementwise}})
            errors.append((abs(move - true), scales))
        return min(errors, key=lambda pair: pair[0])[1]

    def _next_move(self, name: str, state: Mapping[str, Any]) -> float:
        scratch = self._scratch(name)
        counterpart = self._counterpart(
            {name: [scratch]}, {scratch: {key: _copied(entry) for key, entry in state.items()}}, asked=True
        )
        scratch.grad = torch.ones_like(scratch)
        counterpart.step()
        return float(scratch.detach().flatten()[0])

    def _places(self, cohort: Cohort) -> Tensor:
        """Where the newborn lie: positions in the support, or in dense storage positions of single weights, (k,) or (k, h, w)."""
        layer = self.layers[cohort.name]
        s = layer.support
        if layer.layout.storage == "compact":
            return s.find(cohort.ids)
        (h, w), cols = s.block, s.shape[1]
        i = (cohort.ids // s.grid[1])[:, None, None] * h + torch.arange(h, device=cohort.ids.device)[None, :, None]
        j = (cohort.ids % s.grid[1])[:, None, None] * w + torch.arange(w, device=cohort.ids.device)[None, None, :]
        at = torch.where((i < s.shape[0]) & (j < cols), i * cols + j, -1)
        return at.flatten() if s.block == (1, 1) else at

    def _read(self, layer: SparseLayer, stored: Tensor, at: Tensor) -> Tensor:
        if layer.layout.storage == "compact":
            return stored[at]
        return torch.where(at >= 0, stored.reshape(-1)[at.clamp(min=0)], 0.0)

    def _write(self, layer: SparseLayer, stored: Tensor, at: Tensor, data: Tensor) -> None:
        if layer.layout.storage == "compact":
            if stored.dim() > 0 and stored.shape[0] == layer.support.n:
                stored[at] = data.to(stored.dtype)
        elif stored.shape == layer.dense_shape and data.shape == at.shape:
            stored.view(-1)[at[at >= 0]] = data[at >= 0].to(stored.dtype)


def _is_elementwise(entry: Any, p: Tensor) -> bool:
    return torch.is_tensor(entry) and entry.dim() > 0 and entry.shape[0] == p.shape[0]


def _positive(lr: Any) -> Any:
    """The step size, or one in its place where it is 0 (warm-up)."""
    if float(lr) > 0.0:
        return lr
    return torch.full_like(lr, 1e-3) if torch.is_tensor(lr) else 1e-3


def _copied(entry: Any) -> Any:
    return entry.clone() if torch.is_tensor(entry) else entry


def _ratio(young: Tensor, old: Tensor) -> float:
    a, b = float(young.flatten()[0]), float(old.flatten()[0])
    return b / a if a else 1.0
