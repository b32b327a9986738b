"""What an event reports: the record of what it did, and the error of a run that has diverged."""

import math
from typing import Any, NamedTuple


class Event(NamedTuple):
    """What one event did, per layer name."""

    t: int
    dropped: dict[str, int]
    grown: dict[str, int]
    n: dict[str, int]
    sensed: dict[str, int]  # blocks off the support that were measured


class Diverged(ArithmeticError):
    """The loss, or a weight that an event met, is not a finite number.

    ``loss``: raised by :func:`fit` before the optimizer moves. Weights and optimizer state are those of the last good
    step. ``layer``: raised by an event before it changes anything.
    """

    def __init__(self, step: int, loss: float = math.nan, layer: str | None = None):
        self.step, self.loss, self.layer = step, loss, layer
        what = f"the loss is {loss} at step {step}; nothing was changed by this step"
        if layer is not None:
            what = (
                f"weights of layer {layer!r} are NaN or infinite at step {step}; the event of this step changed nothing"
            )
        super().__init__(f"{what}\n  To fix it: a smaller learning rate, some steps of warm-up, or gradient clipping")

    def __reduce__(self) -> tuple[Any, ...]:
        return Diverged, (self.step, self.loss, self.layer)
