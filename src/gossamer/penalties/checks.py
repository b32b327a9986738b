"""What the constructors of penalties refuse."""

# pyright: strict

import math
from collections.abc import Sequence

from .._errors import UsageError, is_real
from .maps import GROUPS


def checked_strength(who: str, lam: float) -> float:
    """``lam`` as a float. Raises UsageError unless it is a finite number of at least 0."""
    if not is_real(lam) or not 0.0 <= lam < math.inf:
        raise UsageError(who, "lam, the strength of the penalty, must be a finite number of at least 0", got=lam)
    return float(lam)


def check_group(who: str, group: str) -> None:
    """Refuses an unknown kind of group."""
    if group not in GROUPS:
        raise UsageError(who, f"unknown group {group!r}", remedy=f"one of {', '.join(GROUPS)}")


def group_problems(group: str, shape: Sequence[int]) -> list[str]:
    """A sentence if a tensor of this shape has no groups of this kind; else []."""
    wanted = GROUPS[group]
    if len(shape) == wanted:
        return []
    return [f"a {group} is part of a tensor of {wanted} dimensions, but this tensor has {len(shape)}"]
