"""The one exception of this library: what is wrong, what was got, why, and one thing to do."""

import difflib
import inspect
import numbers
from collections.abc import Iterable, Sequence
from typing import Any


class UsageError(ValueError):
    """Misuse, refused at construction or before the first step.

    Args:
        who: the function, class or file that refuses.
        what: one sentence, what is wrong.
        got: the offending value, shown with ``repr`` (omitted when None).
        reasons: sentences, when there are several.
        remedy: one thing to do.
    """

    def __init__(
        self, who: str, what: str, *, got: object = None, reasons: Iterable[str] = (), remedy: str | None = None
    ):
        self.who, self.what, self.got, self.reasons, self.remedy = who, what, got, tuple(reasons), remedy
        lines = [f"{who}: {_short(what, 1000)}" + ("" if got is None else f" (got {_short(repr(got), 200)})")]
        lines += [f"  - {reason}" for reason in self.reasons]
        if remedy:
            lines.append(f"  To fix it: {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self):  # an exception with keywords does not survive pickling (worker processes) without this
        return _rebuild, (self.who, self.what, self.got, self.reasons, self.remedy)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _rebuild(who, what, got, reasons, remedy):
    return UsageError(who, what, got=got, reasons=reasons, remedy=remedy)


def nearest(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``name``, or ``""`` when none is near."""
    found = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def check_density(who: str, density: float) -> float:
    """``density`` as a float in (0, 1], or :class:`UsageError`."""
    if not is_real(density) or not 0.0 < density <= 1.0:
        raise UsageError(
            who,
            "density is the share of weights that may be non-zero, a number in (0, 1]",
            got=density,
            remedy="95 % zeros is density=0.05",
        )
    return float(density)


def is_real(value: object) -> bool:
    """Whether it is a number, of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_at_least(who: str, name: str, value: float, least: float) -> None:
    """Refuses ``value < least``, and what is no number."""
    if not is_real(value) or not value >= least:
        raise UsageError(who, f"{name} must be at least {least}", got=value)


def check_count(who: str, name: str, value: Any, least: int) -> int:
    """``value`` as an int; refuses what is not a whole number of at least ``least``."""
    if not is_real(value) or value % 1 or not value >= least:
        raise UsageError(who, f"{name} must be at least {least}, a whole number", got=value)
    return int(value)


def check_fraction(who: str, name: str, value: float) -> None:
    """Refuses a fraction outside [0, 1]."""
    if not is_real(value) or not 0.0 <= value <= 1.0:
        raise UsageError(who, f"{name} is a fraction, a number in [0, 1]", got=value)


def check_choice(who: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses what is none of the choices, and names the nearest."""
    if value not in (choices := list(choices)):
        what = f"unknown {name} {value!r}{nearest(str(value), choices)}"
        raise UsageError(who, what, remedy=f"one of {', '.join(choices)}")


# -------------------------------------------------------------------- what others write


def misfits(thing: object, protocol: type) -> list[str]:
    """What an object lacks of a protocol, a sentence for each member that is missing or takes other arguments; [] if it fits."""
    if isinstance(thing, type):
        return [f"{thing.__name__} is the class; an instance is wanted, {thing.__name__}(...)"]
    found, nothing = [], object()
    members = {
        **dict.fromkeys(protocol.__annotations__),
        **{name: m for name, m in vars(protocol).items() if name[0] != "_"},
    }
    for name, member in members.items():
        method, has = inspect.isfunction(member), getattr(thing, name, nothing)
        asks = list(inspect.signature(member).parameters)[1:] if inspect.isfunction(member) else []
        if has is nothing:
            found.append(f"it has no {name}" + (f"({', '.join(asks)})" if method else ""))
        elif method and (problem := call_problem(name, has, asks)):
            found.append(problem)
    return found


def call_problem(name: str, function: object, asks: Sequence[str]) -> str | None:
    """Why a function cannot be called with these arguments, by position, in a sentence; None if it can, or does not say."""
    wanted = f"{name} must take ({', '.join(asks)})"
    if not callable(function):
        return f"{wanted}, and is {function!r}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function that is built in nothing can be known
        return None
    try:
        signature.bind(*asks)
    except TypeError:
        return f"{wanted}, and takes {signature}"
    return None
