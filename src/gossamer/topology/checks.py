"""Checks that topologies share: ranges of settings, and schedules."""

from collections.abc import Callable

from .._errors import UsageError, check_count, check_density, is_real
from .._schedules import Events, is_count
from .records import Update


def check_common(who: str, stop: int | float, every: int, final_density: float | None, min_fan_in: int) -> None:
    """Refuses values out of range, for the settings that the methods share."""
    if not is_real(stop) or not (is_count(stop) or 0.0 < stop <= 1.0):
        what = "stop is a number of optimizer steps, or a fraction of the run in (0, 1]"
        raise UsageError(who, what, got=stop, remedy="stop=0.75 for three quarters of the run")
    check_count(who, "every", every, 1)
    check_count(who, "min_fan_in", min_fan_in, 0)
    if final_density is not None:
        check_density(who, final_density)


def check_decay(who: str, decay: float) -> None:
    """Refuses a decay outside [0, 1)."""
    if not is_real(decay) or not 0.0 <= decay < 1.0:
        raise UsageError(who, "decay, of a moving average, must lie in [0, 1)", got=decay)


def check_events(who: str, when: Callable[[int], Update | None], stop: int) -> None:
    """Refuses a schedule without any event, and a schedule on which the optimizer never steps."""
    if all(when(t) is None for t in range(1, stop + 1)):
        refuse_no_event(who, None, stop)
    before = range(1, max(2, stop))
    if all((update := when(t)) is not None and not update.step_optimizer for t in before):
        skipped = "is an event, which the optimizer skips (step_optimizer=False)"
        what = f"every step before stop={stop} {skipped}: the weights never move"
        raise UsageError(who, what, remedy="every=2 or more, or step_optimizer=True")


def refuse_no_event(who: str, events: Events | None, stop: int, every: int | None = None) -> None:
    """Refuses a schedule without an event: None, or an empty one."""
    if not events:
        first = "" if every is None else f": the first event would be at step {every}, and events end before stop"
        first += ". stop=1 is one step, stop=1.0 is the whole run" if stop == 1 else ""
        what = f"no event takes place until stop={stop}, so the support never changes{first}"
        raise UsageError(who, what, remedy="every < stop; or gs.Static()")
