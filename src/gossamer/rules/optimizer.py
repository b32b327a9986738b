"""SparseOptimizer: the torch optimizer that runs every rule.

It holds what all rules share: groups, step counts, weight decay, which tensors are penalised. It passes lists of
tensors to a rule: groups with equal options are batched. A step reads no value of a tensor, so it never waits for the
device. Its whole state is in tensors of ``state`` and numbers of groups, so ``state_dict`` is complete and a resumed
run continues bit for bit.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from .._backend import foreach
from .._errors import UsageError
from .._schedules import Schedule
from ..penalties import Zero
from .checks import Group, check_group, check_rule_members, check_same_rules, check_schedules, value_of
from .rule import Latent, Rule, StepInfo

# options of a group: groups that agree in all of them, and in their rule, step together
ALIKE = ("t", "joined", "lr", "largest_lr", "strength", "weight_decay", "sums")


class SparseOptimizer(torch.optim.Optimizer):
    """Any rule as a torch optimizer.

    Args:
        params: parameters or groups, as for every torch optimizer; ``gs.parameter_groups(model)`` makes groups.
            A group may have ``lr`` and ``weight_decay``, and also:
            ``penalised``: whether the penalty acts on it. If it is not given, tensors of two or more dimensions are
            penalised and other tensors are not; a group that holds both kinds becomes two groups;
            ``strength``: factor on the penalty (1);
            ``rule``: the rule of this group. It is kept in ``rules`` and is not part of ``state_dict``.
        rule: ``ProxSGD``, ``RDA``, ``XRDA``, ``LinBreg``, ``AdaBreg``, or an object that passes ``laws.check_rule``.
        lr: step size: a number, or a schedule t -> step size for t = 1, 2, ... that all groups follow.
        steps: length of the run; schedules that end before it are refused.
        weight_decay: this factor times the weight is added to the gradient, in groups without ``weight_decay``.
        allow_compact: whether parameters may be compact though the rule needs zeros to change. Set it if a topology
            or a :class:`~gossamer.Multilevel` changes the support.

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
        check_rule_members("rule", rule)
        self.rule, self.allow_compact = rule, allow_compact
        self.rules: list[Rule] = []  # the rule of each group; with the penalty Zero if the group is not penalised
        self._versions: dict[Tensor, int] = {}  # the version of each parameter when its state was last in agreement
        self.schedule = lr if callable(lr) else None
        self.check_run(steps)
        first = lr(1) if callable(lr) else lr
        super().__init__(params, {"lr": first, "weight_decay": weight_decay, "strength": 1.0})
        if not any(group["penalised"] for group in self.param_groups):
            what = "no parameter is penalised: all have fewer than two dimensions, as biases have"
            known = "gs.parameter_groups(model), which finds the values of sparse layers"
            raise UsageError("SparseOptimizer", what, remedy=f"{known}; or groups with 'penalised': True")
        self._register()

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group, also during a run. It becomes two if it holds weights and biases and has no ``penalised``."""
        given = dict(param_group)
        params = given.pop("params")
        params: list[Tensor] = [params] if isinstance(params, Tensor) else list(params)
        if any(not torch.is_tensor(p) for p in params):
            given["params"] = params
            super().add_param_group(given)  # torch refuses objects that are not parameters, but accepts names
            raise UsageError("SparseOptimizer", "parameters must be given without names")
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
        """One step of every parameter that has a gradient. Returns the result of ``closure``."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        together: dict[Any, list[int]] = {}
        for i, group in enumerate(self.param_groups):
            if self.schedule is not None:
                group["lr"] = value_of("lr", self.schedule, group["t"] + 1)
            group["t"] += 1
            group["largest_lr"] = max(group["largest_lr"], group["lr"])
            alike = tuple(tuple(sorted(group[key].items())) if key == "sums" else group[key] for key in ALIKE)
            together.setdefault((self.rules[i], *alike), []).append(i)
        for (rule, *_), members in together.items():
            self._step_together(rule, [self.param_groups[i] for i in members])
        return result

    def _step_together(self, rule: Rule, groups: list[Group]) -> None:
        w = [p for group in groups for p in group["params"] if p.grad is not None and p.numel()]
        step = self.step_info(groups[0])
        if w:
            g: list[Tensor] = [p.grad for p in w]
            if decay := groups[0]["weight_decay"]:
                g = list(foreach.add(g, w, alpha=decay))
            states = [self.state_of(rule, p, step) for p in w]
            rule.update_(w, g, {key: [state[key] for state in states] for key in states[0]}, step)
            self.remember(w)
        for group in groups:
            group["sums"] = dict(step.sums)

    def step_info(self, group: Group) -> StepInfo:
        """What a rule gets about the last step of a group."""
        t_group = group["t"] - group["joined"]
        return StepInfo(group["t"], t_group, group["lr"], group["largest_lr"], group["strength"], dict(group["sums"]))

    def state_of(self, rule: Rule, parameter: Tensor, step: StepInfo) -> dict[str, Tensor]:
        """The state of one parameter: made at the first call, restarted if other code has written to the parameter."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state.update(rule.init(parameter, step.strength))
        elif self._versions.get(parameter, -1) not in (-1, parameter._version) and isinstance(rule, Latent):
            rule.restart_([parameter], {key: [t] for key, t in state.items()}, step)
            self.remember([parameter])
        return state

    def remember(self, parameters: Iterable[Tensor]) -> None:
        """Records that the present values of these parameters agree with their state."""
        self._versions.update({p: p._version for p in parameters if not p.is_inference()})

    @torch.no_grad()
    def zero_thresholds(self) -> Iterator[Tensor]:
        """For each penalised parameter with state, per entry, the smallest strength at which it would be zero now."""
        for rule, group in zip(self.rules, self.param_groups, strict=True):
            for p in group["params"] if group["penalised"] else ():
                state = {key: [t] for key, t in self.state[p].items()}
                known = bool(state) or not rule.init(p)
                if p.grad is not None:
                    state["g"] = [p.grad]
                if known:
                    yield from rule.zero_thresholds([p], state, self._next_step(group))

    def check_run(self, steps: int | None) -> None:
        """Refuses schedules without a valid value at some step of a run of this length (None: length not known)."""
        check_schedules({**self.rule.schedules(), **({"lr": self.schedule} if self.schedule else {})}, steps)

    # ---------------------------------------------------------------- groups, copies, saved states

    def _add(self, params: list[Tensor], given: Group) -> None:
        rule: Rule = given.pop("rule", self.rule)
        if self.schedule is not None and "lr" in given:
            what = "lr is a schedule that all groups follow, so a group cannot have its own"
            raise UsageError("SparseOptimizer", what, got=given["lr"])
        t = max((g["t"] for g in self.param_groups), default=0)
        compact = given.get("compact", False) or any(is_compact(p) for p in params)
        group: Group = {"t": t, "sums": {}, **given, "compact": compact, "params": params}
        group.update(joined=group["t"], largest_lr=0.0, rule=description(rule))
        check_group(group, rule, self.defaults, self.allow_compact)
        super().add_param_group(group)
        free = cast(Any, rule)  # a rule is a dataclass, which a protocol cannot express
        self.rules.append(rule if group["penalised"] else replace(free, penalty=Zero()))

    def _next_step(self, group: Group) -> StepInfo:
        """:meth:`step_info` with the step size of the next step, if the schedule has one."""
        step = self.step_info(group)
        if self.schedule is None:
            return step
        try:
            return step._replace(lr=value_of("lr", self.schedule, group["t"] + 1))
        except UsageError:
            return step  # the schedule ends here

    def _register(self) -> None:
        self.register_load_state_dict_pre_hook(_check_rules)
        self.register_load_state_dict_post_hook(SparseOptimizer._forget_versions)

    @staticmethod
    def _forget_versions(optimizer: torch.optim.Optimizer) -> None:
        """After a load: the state agrees with the weights that are loaded with it, before or after."""
        assert isinstance(optimizer, SparseOptimizer)  # this is its own hook
        optimizer._versions.clear()

    def __getstate__(self) -> dict[str, Any]:
        """All attributes except hooks. torch's own method would leave out the attributes of a subclass, as the rule."""
        kept = {key: value for key, value in vars(self).items() if not key.startswith("_optimizer_")}
        return {**kept, "_versions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()


def is_compact(p: Tensor) -> bool:
    """Whether these are the values of a layer with compact storage."""
    return getattr(p, "compact", False)


def description(rule: Rule) -> str:
    """A rule and its settings as a string, which is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(rule))


def _check_rules(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    check_same_rules(optimizer.param_groups, state["param_groups"])
