"""What rules and their optimizer refuse, and how they evaluate schedules."""

# pyright: strict

import math
from collections.abc import Sequence
from typing import Any

from .._errors import UsageError, check_at_least, is_real, misfits
from .._schedules import Schedule, end_of
from ..penalties import AdaptivePenalty, Penalty
from .rule import Rule

LOOKS = 2000  # before training starts, a schedule is checked at about this number of steps
Group = dict[str, Any]  # a parameter group: it holds parameters and options
OPTIMIZER = "SparseOptimizer"


# -------------------------------------------------------------------- settings of rules


def check_penalty(who: str, penalty: object, *, convex: bool = False, plain: bool = False) -> None:
    """Refuses an object that is not a penalty.

    ``convex``: refuses a penalty that is not convex, because a mirror map needs convexity. ``plain``: refuses an
    adaptive penalty.
    """
    reasons = misfits(penalty, Penalty)
    if not reasons and isinstance(penalty, Penalty) and penalty.adaptive:
        reasons = misfits(penalty, AdaptivePenalty)
    if reasons:
        known = "gs.L1(lam), gs.LogL1(lam), gs.GroupL1(lam), gs.TopK(density=...)"
        remedy = f"{known}; docs/guides/extend.md shows how to write one"
        raise UsageError(who, "this is not a penalty", got=penalty, reasons=reasons, remedy=remedy)
    assert isinstance(penalty, Penalty)
    if plain and penalty.adaptive:
        what = "an adaptive penalty needs running magnitudes, which only XRDA keeps"
        raise UsageError(who, what, got=penalty, remedy="gs.XRDA(penalty, averaging=0.0)")
    if convex and not penalty.convex:
        remedy = "gs.L1, gs.NonNegativeL1 or gs.GroupL1"
        raise UsageError(who, "a mirror map needs a convex penalty", got=penalty, remedy=remedy)


def check_momentum(who: str, name: str, value: float) -> None:
    """Refuses a value that is not a number in [0, 1)."""
    if not is_real(value) or not 0.0 <= value < 1.0:
        raise UsageError(who, f"{name} must lie in [0, 1)", got=value)


def check_positive(who: str, name: str, value: float) -> None:
    """Refuses a value that is not a positive, finite number."""
    if not is_real(value) or not 0.0 < value < math.inf:
        raise UsageError(who, f"{name} must be a positive, finite number", got=value)


# -------------------------------------------------------------------- rules and groups of the optimizer


def check_rule_members(what: str, rule: object) -> None:
    """Refuses an object that is not a rule, or whose penalty is not a penalty. The reasons name all missing members."""
    reasons = misfits(rule, Rule)
    if not reasons and isinstance(rule, Rule):
        reasons = [f"its penalty: {reason}" for reason in misfits(rule.penalty, Penalty)]
    if reasons:
        remedy = "gs.ProxSGD, RDA, XRDA, LinBreg or AdaBreg; docs/guides/extend.md shows how to write one"
        raise UsageError(OPTIMIZER, f"{what} must be a rule", got=rule, reasons=reasons, remedy=remedy)


def check_group(group: Group, rule: Rule, defaults: Group, allow_compact: bool) -> None:
    """Refuses a parameter group with impossible options, or with parameters that its rule or penalty cannot take."""
    check_rule_members("a group's rule", rule)
    for key in ("lr", "weight_decay", "strength"):
        check_at_least(OPTIMIZER, key, group.get(key, defaults[key]), 0.0)
        if group.get(key, defaults[key]) == math.inf:
            raise UsageError(OPTIMIZER, f"{key} must be a finite number", got=group.get(key, defaults[key]))
    for p in group["params"]:
        if not p.is_floating_point():
            raise UsageError(OPTIMIZER, "parameters must be real floating-point tensors", got=p.dtype)
    if not group["penalised"]:
        return
    shapes = [tuple(p.shape) for p in group["params"]]
    reasons = [f"{shape}: {problem}" for shape in shapes for problem in rule.penalty.problems(shape)]
    if reasons:
        what = f"{rule.penalty} does not fit all parameters that it would penalise"
        remedy = "a separate group for these parameters, with a 'rule' whose penalty fits"
        raise UsageError(OPTIMIZER, what, reasons=dict.fromkeys(reasons), remedy=remedy)
    if group["compact"] and rule.needs_dense and not allow_compact:
        what = f"under {type(rule).__name__} zero weights may become non-zero, but compact storage holds no zeros"
        name = group.get("name", "a group")
        reasons = [f"{name}: the values are stored compactly, so the rule alone cannot let the support grow"]
        other = "allow_compact=True if a topology or gs.Multilevel changes the support"
        raise UsageError(OPTIMIZER, what, reasons=reasons, remedy=f'sparsify(layout="shadow"); or {other}')


def check_same_rules(here: Sequence[Group], there: Sequence[Group]) -> None:
    """Refuses saved parameter groups whose rules differ from those of the present groups."""
    rules = [[group.get("rule") for group in groups] for groups in (here, there)]
    changed = [(i, a, b) for i, (a, b) in enumerate(zip(*rules, strict=False)) if a != b]
    if changed:
        reasons = [f"group {i} had the rule {there}, but has now {here}" for i, here, there in changed]
        what = "this state was saved with another rule"
        raise UsageError(OPTIMIZER, what, reasons=reasons, remedy="the rule it was saved with")


# -------------------------------------------------------------------- schedules


def value_of(name: str, schedule: Schedule, t: int) -> float:
    """The value of a schedule at step t.

    Raises: UsageError if it has no value there, or a value that is not a step size or an averaging.
    """
    top = math.inf if name == "lr" else 1.0
    try:
        value = schedule(t)
    except (LookupError, StopIteration, ValueError, ArithmeticError) as error:
        what = f"the schedule of {name} has no value at step {t}: {type(error).__name__}, {error}"
        remedy = "a schedule as long as the run; steps=... checks it before training"
        raise UsageError(OPTIMIZER, what, got=schedule, remedy=remedy) from error
    if not 0.0 <= value <= top or value == math.inf:
        bounds = "at least 0 and finite" if name == "lr" else "in [0, 1]"
        what = f"{name} must be {bounds} at every step, but it is {value} at step {t}"
        remedy = "another schedule; or steps=..., if the run ends before this step"
        raise UsageError(OPTIMIZER, what, got=schedule, remedy=remedy)
    return value


def check_schedules(schedules: dict[str, Schedule], steps: int | None) -> None:
    """Refuses schedules with an invalid value at some step of the run, and schedules that end before the run.

    ``steps``: length of the run. If it is None, only the first step size is checked here; other schedules are checked
    up to step LOOKS, as far as they have values.
    """
    for name, schedule in schedules.items():
        end = end_of(schedule)
        if steps is not None and end is not None and end < steps:
            what = f"the schedule of {name} ends at step {end}, but the run ends at step {steps}"
            raise UsageError(OPTIMIZER, what, got=schedule, remedy="a schedule as long as the run")
        last = steps or (1 if name == "lr" else LOOKS)
        for t in range(1, last + 1, max(1, last // LOOKS)):
            try:
                value_of(name, schedule, t)
            except UsageError as error:
                if steps is not None or t == 1 or error.__cause__ is None:
                    raise
                break
