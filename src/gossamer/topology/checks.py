"""Range checks that the named methods share."""

from .._errors import UsageError, check_count, check_density, is_real
from .._schedules import is_count


def check_common(who: str, stop: int | float, every: int, final_density: float | None, min_fan_in: int) -> None:
    """Refuses values out of range of the settings that the methods share."""
    if not is_real(stop) or not (is_count(stop) or 0.0 < stop <= 1.0):
        what = "stop counts optimizer steps, or is a fraction of the run, a number in (0, 1]"
        raise UsageError(who, what, got=stop, remedy="stop=0.75 for three quarters of the run")
    check_count(who, "every", every, 1)
    check_count(who, "min_fan_in", min_fan_in, 0)
    if final_density is not None:
        check_density(who, final_density)


def check_decay(who: str, decay: float) -> None:
    """Refuses a decay outside [0, 1)."""
    if not is_real(decay) or not 0.0 <= decay < 1.0:
        raise UsageError(who, "decay of a moving average lies in [0, 1)", got=decay)
