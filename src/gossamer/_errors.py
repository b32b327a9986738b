"""The one exception of this library, and the checks that raise it."""

import difflib
import inspect
import numbers
from collections.abc import Callable, Iterable, Sequence

from torch import nn

_LONGEST_VALUE, _LONGEST_SENTENCE = 200, 1000  # characters of a message that one part may take


class UsageError(ValueError):
    """Misuse. It is raised at construction or before the first step, never in the middle of training.

    Args:
        who: the function, class or file that refuses.
        what: one sentence that says what is wrong.
        got: the offending value; the message shows its ``repr`` unless it is None.
        reasons: sentences, where there are several reasons.
        remedy: what to do.
    """

    def __init__(
        self, who: str, what: str, *, got: object = None, reasons: Iterable[str] = (), remedy: str | None = None
    ) -> None:
        self.who, self.what, self.got, self.reasons, self.remedy = who, what, got, tuple(reasons), remedy
        shown = "" if got is None else f" (got {_short(repr(got), _LONGEST_VALUE)})"
        lines = [f"{who}: {_short(what, _LONGEST_SENTENCE)}{shown}"]
        lines += [f"  - {reason}" for reason in self.reasons]
        if remedy:
            lines.append(f"  To fix it: {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Callable[..., "UsageError"], tuple[object, ...]]:
        # pickle calls an exception with its positional arguments only; worker processes send exceptions as pickles
        return _rebuild, (self.who, self.what, self.got, self.reasons, self.remedy)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _rebuild(who: str, what: str, got: object, reasons: Iterable[str], remedy: str | None) -> UsageError:
    return UsageError(who, what, got=got, reasons=reasons, remedy=remedy)


def nearest(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice most similar to ``name``, or ``""`` where no choice is similar."""
    found = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


# -------------------------------------------------------------------- values


def is_real(value: object) -> bool:
    """Whether a value is a real number of Python or NumPy. A bool is not one."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real)


def check_density(who: str, density: float) -> float:
    """``density`` as a float. Raises UsageError unless it lies in (0, 1]."""
    if not is_real(density) or not 0.0 < density <= 1.0:
        what = "density is the fraction of the weights that may be non-zero, a number in (0, 1]"
        raise UsageError(who, what, got=density, remedy="95 % zeros is density=0.05")
    return float(density)


def check_at_least(who: str, name: str, value: float, least: float) -> None:
    """Raises UsageError unless ``value`` is a number of at least ``least``."""
    if not is_real(value) or not value >= least:  # NaN compares as False
        raise UsageError(who, f"{name} must be at least {least}", got=value)


def check_count(who: str, name: str, value: float, least: int) -> int:
    """``value`` as an int. Raises UsageError unless it is a whole number of at least ``least``."""
    if not is_real(value) or value % 1 or not value >= least:
        raise UsageError(who, f"{name} must be at least {least}, a whole number", got=value)
    return int(value)


def check_fraction(who: str, name: str, value: float) -> None:
    """Raises UsageError unless ``value`` lies in [0, 1]."""
    if not is_real(value) or not 0.0 <= value <= 1.0:
        raise UsageError(who, f"{name} is a fraction, a number in [0, 1]", got=value)


def check_module(who: str, model: object) -> None:
    """Refuses what is not a module of torch."""
    if not isinstance(model, nn.Module):
        raise UsageError(who, "the model must be a torch.nn.Module", got=model)


def check_choice(who: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Raises UsageError, with the most similar choice, unless ``value`` is one of the choices."""
    if value not in (choices := list(choices)):
        what = f"unknown {name} {value!r}{nearest(str(value), choices)}"
        raise UsageError(who, what, remedy=f"one of {', '.join(choices)}")


# -------------------------------------------------------------------- objects that users define


def misfits(thing: object, protocol: type) -> list[str]:
    """Why an object does not fit a protocol.

    Returns: one sentence for each member that is missing or takes other arguments; [] if the object fits.
    """
    if isinstance(thing, type):
        return [f"{thing.__name__} is a class; give an instance, {thing.__name__}(...)"]
    members: dict[str, object] = {
        **dict.fromkeys(inspect.get_annotations(protocol)),
        **{name: member for name, member in vars(protocol).items() if not name.startswith("_")},
    }
    missing, found = object(), list[str]()
    for name, member in members.items():
        own: object = getattr(thing, name, missing)
        takes = list(inspect.signature(member).parameters)[1:] if inspect.isfunction(member) else None
        if own is missing:
            found.append(f"it has no {name}" + ("" if takes is None else f"({', '.join(takes)})"))
        elif takes is not None and (problem := call_problem(name, own, takes)):
            found.append(problem)
    return found


def call_problem(name: str, function: object, arguments: Sequence[str]) -> str | None:
    """Why a function cannot be called with these positional arguments, as a sentence.

    Returns: None if it can be called with them, or if it has no signature.
    """
    wanted = f"{name} must take ({', '.join(arguments)})"
    if not callable(function):
        return f"{wanted}, but it is {function!r}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        return f"{wanted}, but it takes {signature}"
    return None
