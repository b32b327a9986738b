"""Schedules: functions from the optimizer step t = 1, 2, ... to a number; and the steps at which events take place.

    cosine    value/2 (1 + cos(pi t / stop)), 0 from step `stop` on              RigL (Evci et al. 2020, section 3)
    cubic     start + (end - start) (1 - (1 - p)^3),                             Zhu & Gupta 2017
              p = (t - begin) / (stop - begin), held within [0, 1]
    growing   t_{j+1} = t_j + round(I(t_j)), I(t) = every (last_every / every)^(t / stop)     the events of CSST
    halving, warm_up, averaging, cosine_pair, halving_pair                       step size and averaging of XRDA

A schedule is a frozen value. Evaluating it changes nothing.
"""

import bisect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field

from ._errors import UsageError, check_at_least, is_real

Schedule = Callable[[int], float]  # optimizer step, from 1 on -> value


@dataclass(frozen=True)
class constant:
    """The same ``value`` at every step."""

    value: float

    def __call__(self, t: int) -> float:
        return self.value


@dataclass(frozen=True)
class cosine:
    """From ``value`` at step 0 to 0 at step ``stop`` by half a period of a cosine; 0 after that."""

    value: float
    stop: int

    def __post_init__(self) -> None:
        check_at_least("cosine", "value", self.value, 0.0)
        check_at_least("cosine", "stop", self.stop, 1)

    def __call__(self, t: int) -> float:
        return self.value / 2 * (1 + math.cos(math.pi * min(t, self.stop) / self.stop))


@dataclass(frozen=True)
class cubic:
    """``start`` until step ``begin``, ``end`` from step ``stop`` on. In between, the value changes fast at first."""

    start: float
    end: float
    begin: int
    stop: int

    def __post_init__(self) -> None:
        check_at_least("cubic", "stop", self.stop, self.begin + 1)

    def __call__(self, t: int) -> float:
        p = min(max((t - self.begin) / (self.stop - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * (1 - (1 - p) ** 3)


# -------------------------------------------------------------------- events


@dataclass(frozen=True)
class Events:
    """The steps at which the support changes, strictly increasing."""

    steps: tuple[int, ...]
    _members: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_members", frozenset(self.steps))  # a frozen dataclass forbids plain assignment

    def __contains__(self, t: int) -> bool:
        return t in self._members

    def __len__(self) -> int:
        return len(self.steps)

    def next(self, t: int) -> int | None:
        """The first event at step ``t`` or later; None if there is none."""
        i = bisect.bisect_left(self.steps, t)
        return self.steps[i] if i < len(self.steps) else None

    def gap(self, t: int) -> int:
        """Steps between the event at ``t`` and the event before it (step 0 for the first event)."""
        i = bisect.bisect_left(self.steps, t)
        return t - (self.steps[i - 1] if i > 0 else 0)


def growing(every: int, last_every: int, stop: int) -> Events:
    """Events from step ``every`` on, before ``stop``. The intervals change exponentially to ``last_every`` steps."""
    for name, value in (("every", every), ("last_every", last_every), ("stop", stop)):
        if not is_real(value) or value % 1 or value < 1:
            raise UsageError("growing", f"{name} counts optimizer steps, a whole number of at least 1", got=value)
    steps, t = list[int](), every
    while t < stop:
        steps.append(t)
        t += max(1, round(every * (last_every / every) ** (t / stop)))
    return Events(tuple(steps))


def regular(every: int, stop: int) -> Events:
    """Events at the steps ``every``, ``2 every``, ... before ``stop``."""
    return growing(every, every, stop)


# -------------------------------------------------------------------- places in a run


def is_count(stop: int | float) -> bool:
    """Whether ``stop`` is a number of optimizer steps, not a fraction of the run: 1 is one step, 1.0 the whole run."""
    return isinstance(stop, numbers.Integral) or stop > 1.0


def step_of(who: str, name: str, stop: int | float, steps: int | None) -> int:
    """The optimizer step that a setting stands for.

    Args:
        who: the function that raises the error, for messages.
        name: the name of the setting, for messages.
        stop: a number of optimizer steps, or a fraction of the run in (0, 1].
        steps: optimizer steps of the run; None if the number is not known.

    Raises: UsageError if ``stop`` is neither, or if it is a fraction and ``steps`` is None.
    """
    if not is_real(stop) or not stop > 0.0 or (is_count(stop) and (stop % 1 or stop < 1)):
        what = f"{name} counts optimizer steps, or is a fraction of the run, a number in (0, 1]"
        raise UsageError(who, what, got=stop, remedy=f"{name}=0.75 for three quarters of the run")
    if is_count(stop):
        return int(stop)
    if steps is None:
        what = f"{name}={stop:g} is a fraction of the run, but the number of steps of the run is not known"
        raise UsageError(who, what, remedy=f"gs.Rewirer(..., steps=...); or {name} as a number of optimizer steps")
    return max(1, round(stop * steps))


# -------------------------------------------------------------------- step sizes and averaging (XRDA)


@dataclass(frozen=True)
class halving:
    """``value``, halved after each of the steps ``at``: value / 2^k at step t, where k of these steps are below t."""

    value: float
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.at) != sorted(set(self.at)):
            raise UsageError("halving", "at must list steps in increasing order", got=self.at)

    def __call__(self, t: int) -> float:
        return self.value * 0.5 ** bisect.bisect_left(self.at, t)


@dataclass(frozen=True)
class warm_up:
    """Another schedule, multiplied by t / ``steps`` during the first ``steps`` steps."""

    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        check_at_least("warm_up", "steps", self.steps, 1)

    def __call__(self, t: int) -> float:
        return self.schedule(t) * min(1.0, t / self.steps)


@dataclass(frozen=True)
class averaging:
    """The averaging that keeps XRDA's threshold constant: alpha_t = 1 - s_t / value, within [0, 1], for step sizes s_t.

    Then S_t = alpha_t S_{t-1} + s_t has the fixed point ``value``
    (Siegel, Chen, Zhang, Xu 2020; derived in docs/methods/xrda.md).
    """

    step: Schedule
    value: float

    def __post_init__(self) -> None:
        if not self.value > 0.0:
            raise UsageError("averaging", "value, the largest step size, must be positive", got=self.value)

    def __call__(self, t: int) -> float:
        return min(1.0, max(0.0, 1 - self.step(t) / self.value))


def cosine_pair(value: float, stop: int) -> tuple[cosine, averaging]:
    """Step size and averaging of XRDA: s_t = value/2 (1 + cos(pi t / stop)), alpha_t = (1 - cos(pi t / stop)) / 2."""
    step = cosine(value, stop)
    return step, averaging(step, value)


def halving_pair(value: float, at: tuple[int, ...]) -> tuple[halving, averaging]:
    """Step size and averaging of XRDA: s_t and 1 - alpha_t are both halved after each of the steps ``at``."""
    step = halving(value, at)
    return step, averaging(step, value)


def end_of(schedule: object) -> int | None:
    """The step from which a schedule of this module is constant; None if no step is known."""
    if isinstance(schedule, (cosine, cubic)):
        return schedule.stop
    if isinstance(schedule, warm_up):
        return end_of(schedule.schedule)
    return end_of(schedule.step) if isinstance(schedule, averaging) else None
