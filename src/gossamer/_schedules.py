"""Schedules: functions from the optimizer step t = 1, 2, ... to a number, and the lists of steps at which events happen.

    cosine    v/2 (1 + cos(pi t / stop)), 0 from `stop` on                     RigL (Evci et al. 2020, section 3)
    cubic     start + (end - start) (1 - (1 - p)^3), p = share of [begin, stop]  Zhu & Gupta 2017
    growing   t_{j+1} = t_j + round(I(t_j)), I(t) = I_0 (I_1 / I_0)^(t / stop)   CSST: update frequency decays exponentially
    halving, warm_up, averaging, cosine_pair, halving_pair                       step size and averaging of xRDA

A schedule is a frozen value: nothing changes because it was evaluated.
"""

import bisect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

from ._errors import UsageError, check_at_least

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class constant:
    """The same ``value`` at every step."""

    value: float

    def __call__(self, t: int) -> float:
        return self.value


@dataclass(frozen=True)
class cosine:
    """From ``value`` at step 0 to 0 at step ``stop`` and after, by half a cosine."""

    value: float
    stop: int

    def __post_init__(self):
        check_at_least("cosine", "value", self.value, 0.0)
        check_at_least("cosine", "stop", self.stop, 1)

    def __call__(self, t: int) -> float:
        return self.value / 2 * (1 + math.cos(math.pi * min(t, self.stop) / self.stop))


@dataclass(frozen=True)
class cubic:
    """From ``start`` (until step ``begin``) to ``end`` (from step ``stop`` on), fast at first."""

    start: float
    end: float
    begin: int
    stop: int

    def __post_init__(self):
        check_at_least("cubic", "stop", self.stop, self.begin + 1)

    def __call__(self, t: int) -> float:
        p = min(max((t - self.begin) / (self.stop - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * (1 - (1 - p) ** 3)


@dataclass(frozen=True)
class Events:
    """The steps at which the support changes, strictly increasing."""

    steps: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "_set", frozenset(self.steps))

    def __contains__(self, t: int) -> bool:
        return t in self._set  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.steps)

    def next(self, t: int) -> int | None:
        """The first event at step ``t`` or later, or None."""
        i = bisect.bisect_left(self.steps, t)
        return self.steps[i] if i < len(self.steps) else None

    def gap(self, t: int) -> int:
        """Steps between the event at ``t`` and the one before it (or step 0)."""
        i = bisect.bisect_left(self.steps, t)
        return t - (self.steps[i - 1] if i > 0 else 0)


def growing(every: int, last_every: int, stop: int) -> Events:
    """Events from step ``every`` on, at intervals that grow exponentially to ``last_every`` at ``stop``; none at or after ``stop``."""
    for name, value in (("every", every), ("last_every", last_every), ("stop", stop)):
        if value != int(value) or value < 1:
            raise UsageError("growing", f"{name} counts optimizer steps, a whole number of at least 1", got=value)
    steps, t = [], every
    while t < stop:
        steps.append(t)
        t += max(1, round(every * (last_every / every) ** (t / stop)))
    return Events(tuple(steps))


def is_count(stop: int | float) -> bool:
    """Whether a place in a run is a number of steps; otherwise it is a fraction of the run. ``1`` is a step, ``1.0`` the whole run."""
    return isinstance(stop, numbers.Integral) or stop > 1.0


def step_of(who: str, name: str, stop: int | float, steps: int | None) -> int:
    """The step that a setting stands for: a number of optimizer steps, or a fraction in (0, 1] of a run of so many ``steps``."""
    if is_count(stop):
        if stop != int(stop) or stop < 1:
            raise UsageError(who, f"{name} counts optimizer steps, a whole number of at least 1", got=stop)
        return int(stop)
    if steps is None:
        what = f"{name}={stop:g} is a fraction of the run, and nobody has said how many steps the run has"
        raise UsageError(who, what, remedy=f"gs.Rewirer(..., steps=...); or {name} as a number of optimizer steps")
    return max(1, round(stop * steps))


def regular(every: int, stop: int) -> Events:
    """Events at ``every``, ``2 every``, ...; none at or after ``stop``."""
    return growing(every, every, stop)


# -------------------------------------------------------------------- of step sizes and averaging (xRDA)


@dataclass(frozen=True)
class halving:
    """``value``, halved after each of the steps ``at``: at step t it is value / 2^(number of steps in ``at`` below t)."""

    value: float
    at: tuple[int, ...]

    def __post_init__(self):
        if list(self.at) != sorted(set(self.at)):
            raise UsageError("halving", "at lists steps, increasing", got=self.at)

    def __call__(self, t: int) -> float:
        return self.value * 0.5 ** bisect.bisect_left(self.at, t)


@dataclass(frozen=True)
class warm_up:
    """Another schedule, times t / ``steps`` over the first ``steps`` steps."""

    schedule: Schedule
    steps: int

    def __post_init__(self):
        check_at_least("warm_up", "steps", self.steps, 1)

    def __call__(self, t: int) -> float:
        return self.schedule(t) * min(1.0, t / self.steps)


@dataclass(frozen=True)
class averaging:
    """The averaging that keeps xRDA's threshold where it is: alpha_t = 1 - s_t / value, in [0, 1], for the step size s_t of a schedule.

    Then S_t = alpha_t S_{t-1} + s_t has the fixed point ``value`` (Siegel, Chen, Zhang, Xu 2020; derived in docs/methods/xrda.md).
    """

    step: Schedule
    value: float

    def __post_init__(self):
        if not self.value > 0.0:
            raise UsageError("averaging", "value, the largest step size, must be positive", got=self.value)

    def __call__(self, t: int) -> float:
        return min(1.0, max(0.0, 1 - self.step(t) / self.value))


def cosine_pair(value: float, stop: int) -> tuple[cosine, averaging]:
    """Step size and averaging of xRDA together: s_t = value/2 (1 + cos(pi t / stop)), alpha_t = (1 - cos(pi t / stop)) / 2."""
    step = cosine(value, stop)
    return step, averaging(step, value)


def halving_pair(value: float, at: tuple[int, ...]) -> tuple[halving, averaging]:
    """Step size and 1 - averaging, both halved after each of the steps ``at``."""
    step = halving(value, at)
    return step, averaging(step, value)


def end_of(schedule: object) -> int | None:
    """The step at which a schedule of this module has run out, None if it never does or is not known here."""
    if isinstance(schedule, (cosine, cubic)):
        return schedule.stop
    if isinstance(schedule, warm_up):
        return end_of(schedule.schedule)
    return end_of(schedule.step) if isinstance(schedule, averaging) else None
