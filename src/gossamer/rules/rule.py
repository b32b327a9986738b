"""SparseOptimizer: the one torch optimizer around every rule. A rule is a frozen record of settings with two methods.

    init(...)     the state of one tensor before its first step, a dict of tensors
    update_(...)  one step of many tensors: the lines of the paper's equations, on lists of tensors (torch's foreach functions)

The shell owns what all rules share: groups, step counts, weight decay, which tensors are penalised, and lists that batch all groups which
step alike. A step reads no tensor's value, so nothing waits for the device. What it remembers is a tensor of ``state`` or a number in
a group, so ``state_dict`` is complete and a resumed run goes on bit for bit.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._errors import UsageError, check_at_least
from .._schedules import Schedule, end_of
from ..penalties import Penalty, Zero
from .checks import check_rule_members, value_of
from .latent import Latent

LOOKS = 2000  # steps at which a schedule is evaluated before the first one
KEYS = (
    "t",
    "born",
    "lr",
    "lr0",
    "strength",
    "weight_decay",
    "sums",
)  # of a group: those that agree in all of them step as one
State = dict[str, list[Tensor]]  # what a rule keeps, by name, in the order of the tensors


class StepInfo(NamedTuple):
    """What a rule is told of a step."""

    t: int  # 1, 2, ... of the run: what schedules are asked with
    own: int  # 1, 2, ... of this group, which may have been added later
    lr: float  # s_t
    lr0: float  # the largest step size so far
    strength: float  # factor on the penalty
    sums: dict[str, float]  # numbers that the rule keeps for all tensors together: it may change them


@runtime_checkable
class Rule(Protocol):
    """How values move.

    ``needs_dense``: a weight that is zero may come back, so dense storage is wanted. ``zeros_follow_state``: which weights are zero follows from the state
    and the strength alone, so it answers a change of strength at once; otherwise weights take steps to get there.
    """

    @property
    def penalty(self) -> Penalty:
        """R."""
        ...

    needs_dense: ClassVar[bool]
    zeros_follow_state: ClassVar[bool]

    def init(self, w: Tensor, strength: float = 1.0) -> dict[str, Tensor]:
        """State of one tensor, before its first step; ``strength`` is the factor on the penalty then."""
        ...

    def update_(self, w: list[Tensor], g: list[Tensor], state: State, now: StepInfo) -> None:
        """One step: changes ``w`` and ``state`` in place, leaves ``g`` alone."""
        ...

    def zero_thresholds(self, w: list[Tensor], state: State, now: StepInfo) -> list[Tensor]:
        """Entry by entry the strength from which the weight would be zero now (``Penalty.zero_threshold``). ``state`` also has the last gradient,
        "g", where there is one."""
        ...

    def schedules(self) -> dict[str, Schedule]:
        """The settings that are functions of the step, by name, all with values in [0, 1]."""
        ...


class SparseOptimizer(torch.optim.Optimizer):
    """Any rule as a torch optimizer.

    Args:
        params: parameters or groups, as for every torch optimizer; ``gs.parameter_groups(model)`` makes groups. A group may have, besides
            ``lr`` and ``weight_decay``:
            ``penalised``: whether the penalty acts on it. Without it, tensors of two or more dimensions are penalised and others are not;
            a group that holds both kinds becomes two groups;
            ``strength``: factor on the penalty (1);
            ``rule``: a rule of its own, kept in ``rules`` (it is no part of ``state_dict``).
        rule: ``ProxSGD``, ``RDA``, ``XRDA``, ``LinBreg``, ``AdaBreg``, or anything that passes ``laws.check_rule``.
        lr: step size, a number, or a schedule t -> step size for t = 1, 2, ... that all groups follow.
        steps: length of the run: schedules that end before it are refused.
        weight_decay: added to the gradient, times the weight, in groups that do not say.
        allow_compact: the parameters may be compact, so that weights off the support cannot come back by the rule alone: say so where a
            topology, or :class:`~gossamer.Multilevel`, changes the support.

    Raises: UsageError, at construction or in ``add_param_group``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Rule,
        lr: float | Schedule = 1e-3,
        *,
        steps: int | None = None,
        weight_decay: float = 0.0,
        allow_compact: bool = False,
    ):
        check_rule_members("rule", rule, Rule)
        self.rule, self.allow_compact, self.steps = rule, allow_compact, steps
        self.rules: list[Rule] = []
        self._written: dict[Tensor, int] = {}  # in which version the last step left a parameter
        self.schedule = lr if callable(lr) else None
        self.check_run(steps)
        first = value_of("lr", self.schedule, 1) if self.schedule else lr
        super().__init__(params, {"lr": first, "weight_decay": weight_decay, "strength": 1.0})
        if not any(group["penalised"] for group in self.param_groups):
            what = "no parameter is penalised: all have fewer than two dimensions, as biases do"
            remedy = (
                "gs.parameter_groups(model), which knows the values of sparse layers; or groups with 'penalised': True"
            )
            raise UsageError("SparseOptimizer", what, remedy=remedy)
        self._register()

    def _register(self) -> None:
        self.register_load_state_dict_pre_hook(_refuse_other_rules)
        self.register_load_state_dict_post_hook(_trust)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, or two where it holds weights and biases and does not say which are penalised. Its step count is the others'."""
        given = dict(param_group)
        params = given.pop("params")
        params = [params] if isinstance(params, Tensor) else list(params)
        if any(not isinstance(p, Tensor) for p in params):
            given["params"] = params
            super().add_param_group(given)  # names, or a mistake: torch's to say
            raise UsageError("SparseOptimizer", "parameters are given without names")
        if "penalised" in given:
            self._add(params, given)
            return
        kinds: dict[tuple[bool, bool], list[Tensor]] = {(True, True): [], (True, False): [], (False, False): []}
        for p in params:
            compact = is_compact(p)
            kinds[compact or p.dim() >= 2, compact].append(p)
        for (penalised, compact), members in kinds.items():
            if members:
                self._add(members, {"compact": compact, **given, "penalised": penalised})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        together: dict[Any, list[int]] = {}
        for i, group in enumerate(self.param_groups):
            if self.schedule is not None:
                group["lr"] = value_of("lr", self.schedule, group["t"] + 1)
            group["t"] += 1
            group["lr0"] = max(group["lr0"], group["lr"])
            alike = tuple(tuple(sorted(group[key].items())) if key == "sums" else group[key] for key in KEYS)
            together.setdefault((self.rules[i], *alike), []).append(i)
        for (rule, *_), members in together.items():
            self._move(rule, members)
        return result

    def check_run(self, steps: int | None) -> None:
        """Refuses schedules that are wrong at some step of a run of this length, or end before it. Of a run of unknown length, step sizes
        are looked at as they come, and averagings ahead for as long as they have values."""
        schedules = {**self.rule.schedules(), **({"lr": self.schedule} if self.schedule else {})}
        for name, schedule in schedules.items():
            end = end_of(schedule)
            if steps is not None and end is not None and end < steps:
                what = f"the schedule of {name} ends at step {end}, the run at step {steps}"
                raise UsageError("SparseOptimizer", what, got=schedule, remedy="a schedule as long as the run")
            last = steps or (1 if name == "lr" else LOOKS)
            for t in range(1, last + 1, max(1, last // LOOKS)):
                try:
                    value_of(name, schedule, t)
                except UsageError as error:
                    if steps is not None or t == 1 or error.__cause__ is None:
                        raise
                    break

    def wrote(self, w: Iterable[Tensor]) -> None:
        """What these parameters hold now goes with their state."""
        self._written.update({p: p._version for p in w if not p.is_inference()})

    def now(self, group: dict[str, Any]) -> StepInfo:
        """What the rule is told of a group's step."""
        return StepInfo(
            group["t"], group["t"] - group["born"], group["lr"], group["lr0"], group["strength"], dict(group["sums"])
        )

    def state_of(self, rule: Rule, parameter: Tensor, now: StepInfo) -> dict[str, Tensor]:
        """The state of one parameter: made now if there is none, and that of the weights as they are if somebody else has written them."""
        state = self.state[parameter]
        if not state:
            state.update(rule.init(parameter, now.strength))
        elif self._written.get(parameter, -1) not in (-1, parameter._version) and isinstance(rule, Latent):
            rule.restart_([parameter], {key: [t] for key, t in state.items()}, now)
            self.wrote([parameter])
        return state

    @torch.no_grad()
    def zero_thresholds(self) -> Iterator[Tensor]:
        """For every penalised parameter that has been moved, made one by one: entry by entry the strength from which it would be zero."""
        for rule, group in zip(self.rules, self.param_groups, strict=True):
            for p in group["params"] if group["penalised"] else ():
                state = {key: [t] for key, t in self.state[p].items()}
                known = bool(state) or not rule.init(p)
                if p.grad is not None:
                    state["g"] = [p.grad]
                if known:
                    yield from rule.zero_thresholds([p], state, self._next(group))

    def __getstate__(self) -> dict[str, Any]:
        """All but the hooks: torch's own forgets what a subclass has, and a copy would have no rule."""
        return {
            **{key: value for key, value in vars(self).items() if not key.startswith("_optimizer_")},
            "_written": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()

    # ---------------------------------------------------------------- details

    def _next(self, group: dict[str, Any]) -> StepInfo:
        """``now`` with the step size of the step to come, where it is known."""
        now = self.now(group)
        if self.schedule is None:
            return now
        try:
            return now._replace(lr=value_of("lr", self.schedule, group["t"] + 1))
        except UsageError:
            return now  # it ends here

    def _add(self, params: list[Tensor], given: dict[str, Any]) -> None:
        rule = given.pop("rule", self.rule)
        compact = given.get("compact", False) or any(is_compact(p) for p in params)
        group = {
            "t": max((g["t"] for g in self.param_groups), default=0),
            "sums": {},
            **given,
            "compact": compact,
            "params": params,
        }
        group["born"] = group["t"]
        group["rule"] = description(rule)
        _check_group(group, rule, self.defaults, self.allow_compact)
        group["lr0"] = 0.0
        if self.schedule is not None and "lr" in given:
            raise UsageError(
                "SparseOptimizer", "lr is a schedule that all groups follow, and a group has its own", got=given["lr"]
            )
        super().add_param_group(group)
        self.rules.append(rule if group["penalised"] else replace(rule, penalty=Zero()))  # type: ignore[type-var]

    def _move(self, rule: Rule, members: list[int]) -> None:
        groups = [self.param_groups[i] for i in members]
        w = [p for group in groups for p in group["params"] if p.grad is not None and p.numel()]
        now = self.now(groups[0])
        if w:
            g: list[Tensor] = [p.grad for p in w]
            if decay := groups[0]["weight_decay"]:
                g = list(torch._foreach_add(g, w, alpha=decay))
            states = [self.state_of(rule, p, now) for p in w]
            rule.update_(w, g, {key: [state[key] for state in states] for key in states[0]}, now)
            self.wrote(w)
        for group in groups:
            group["sums"] = dict(now.sums)


def is_compact(p: Tensor) -> bool:
    """Whether these are the values of a layer that stores nothing off its support."""
    return getattr(p, "compact", False)


def description(rule: Rule) -> str:
    """A rule and its settings in words that are the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(rule))


# -------------------------------------------------------------------- refusals


def _check_group(group: dict[str, Any], rule: Rule, defaults: dict[str, Any], allow_compact: bool) -> None:
    who = "SparseOptimizer"
    check_rule_members("a group's rule", rule, Rule)
    for key in ("lr", "weight_decay", "strength"):
        check_at_least(who, key, group.get(key, defaults[key]), 0.0)
        if group.get(key, defaults[key]) == math.inf:
            raise UsageError(who, f"{key} is a finite number", got=group.get(key, defaults[key]))
    for p in group["params"]:
        if not p.is_floating_point():
            raise UsageError(who, "parameters are real numbers", got=p.dtype)
    if not group["penalised"]:
        return
    reasons = [
        f"{tuple(p.shape)}: {problem}" for p in group["params"] for problem in rule.penalty.problems(tuple(p.shape))
    ]
    if reasons:
        remedy = "a group of parameters with a 'rule' of its own, whose penalty fits"
        raise UsageError(
            who,
            f"{rule.penalty} does not fit all parameters it would penalise",
            reasons=dict.fromkeys(reasons),
            remedy=remedy,
        )
    if group["compact"] and rule.needs_dense and not allow_compact:
        what = f"{type(rule).__name__} brings weights back from zero, and compact storage holds none off its support"
        reasons = [
            group.get("name", "a group") + ": the values are stored compactly, and nothing would let the support grow"
        ]
        remedy = (
            'sparsify(layout="shadow"); or allow_compact=True where a topology or gs.Multilevel changes the support'
        )
        raise UsageError(who, what, reasons=reasons, remedy=remedy)


def _trust(optimizer: Any) -> None:
    """A state that was loaded goes with the weights that are loaded with it, before or after."""
    optimizer._written = {}


def _refuse_other_rules(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    mine, theirs = (
        [group.get("rule") for group in groups] for groups in (optimizer.param_groups, state["param_groups"])
    )
    reasons = [f"group {i} was {b}, is {a}" for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b]
    if reasons:
        raise UsageError(
            "SparseOptimizer",
            "this state was saved under another rule",
            reasons=reasons,
            remedy="the rule it was saved with",
        )
