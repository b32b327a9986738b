"""The one exception of this library: what is wrong, what was got, why, and one thing to do."""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


class Unfit(ValueError):
    """Misuse, refused at construction or before the first step.

    Args:
        who: the function, class or file that refuses.
        what: one sentence, what is wrong.
        got: the offending value, shown with ``repr`` (omitted when None).
        reasons: sentences, when there are several.
        remedy: one thing to do.
    """

    def __init__(self, who: str, what: str, *, got: object = None, reasons: Iterable[str] = (), remedy: str | None = None):
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
    return Unfit(who, what, got=got, reasons=reasons, remedy=remedy)


def nearest(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``name``, or ``""`` when none is near."""
    found = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def check_density(who: str, density: float) -> float:
    """``density`` as a float in (0, 1], or :class:`Unfit`."""
    if not is_real(density) or not 0.0 < density <= 1.0:
        raise Unfit(
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
        raise Unfit(who, f"{name} must be at least {least}", got=value)


def check_count(who: str, name: str, value: Any, least: int) -> int:
    """``value`` as an int; refuses what is not a whole number of at least ``least``."""
    if not is_real(value) or value % 1 or not value >= least:
        raise Unfit(who, f"{name} must be at least {least}, a whole number", got=value)
    return int(value)


def check_share(who: str, name: str, value: float) -> None:
    """Refuses a share outside [0, 1]."""
    if not is_real(value) or not 0.0 <= value <= 1.0:
        raise Unfit(who, f"{name} is a share, a number in [0, 1]", got=value)
