"""What rules refuse, and the values of their schedules."""

import math

from .._errors import UsageError, is_real, misfits
from .._schedules import Schedule
from ..penalties import Penalty


def check_penalty(who: str, penalty: object, *, convex: bool = False, plain: bool = False) -> None:
    """Refuses what is no penalty, one that is not convex where a mirror map needs it, and one with weights where there are none."""
    if reasons := misfits(penalty, Penalty):
        remedy = (
            "gs.L1(lam), gs.LogL1(lam), gs.GroupL1(lam), gs.TopK(density=...); docs/guides/extend.md shows how to write one"
        )
        raise UsageError(who, "penalty must be a penalty", got=penalty, reasons=reasons, remedy=remedy)
    assert isinstance(penalty, Penalty)
    if plain and penalty.adaptive:
        raise UsageError(
            who,
            "an adaptive penalty needs running magnitudes, which only XRDA keeps",
            got=penalty,
            remedy="gs.XRDA(penalty, averaging=0.0)",
        )
    if convex and not penalty.convex:
        raise UsageError(
            who,
            "a mirror map is built on a convex penalty",
            got=penalty,
            remedy="gs.L1, gs.NonNegativeL1 or gs.GroupL1",
        )


def check_rule_members(what: str, rule: object, protocol: type) -> None:
    """Refuses what is no rule, or has a penalty that is none, and names every member that it lacks."""
    reasons = misfits(rule, protocol)
    reasons = reasons or [f"its penalty: {reason}" for reason in misfits(rule.penalty, Penalty)]  # type: ignore[attr-defined]
    if reasons:
        remedy = "gs.ProxSGD, RDA, XRDA, LinBreg or AdaBreg; docs/guides/extend.md shows how to write one"
        raise UsageError("SparseOptimizer", f"{what} must be a rule", got=rule, reasons=reasons, remedy=remedy)


def check_momentum(who: str, name: str, value: float) -> None:
    """Refuses what is not in [0, 1)."""
    if not is_real(value) or not 0.0 <= value < 1.0:
        raise UsageError(who, f"{name} lies in [0, 1)", got=value)


def check_positive(who: str, name: str, value: float) -> None:
    """Refuses what is no positive, finite number."""
    if not is_real(value) or not 0.0 < value < math.inf:
        raise UsageError(who, f"{name} is a positive number", got=value)


def value_of(name: str, schedule: Schedule, t: int) -> float:
    """What a schedule says at a step. Raises UsageError where that is no step size, no averaging, or nothing."""
    top = math.inf if name == "lr" else 1.0
    try:
        value = schedule(t)
    except (LookupError, StopIteration, ValueError, ArithmeticError) as error:
        what = f"the schedule of {name} has no value at step {t}: {type(error).__name__}, {error}"
        raise UsageError(
            "SparseOptimizer", what, got=schedule, remedy="a schedule as long as the run, and steps= to have it checked"
        ) from error
    if not 0.0 <= value <= top or value == math.inf:
        bounds = "at least 0 and finite" if name == "lr" else "in [0, 1]"
        remedy = "another schedule; or steps=, if the run is shorter than that"
        raise UsageError(
            "SparseOptimizer",
            f"{name} must be {bounds} at every step, and is {value} at step {t}",
            got=schedule,
            remedy=remedy,
        )
    return value
