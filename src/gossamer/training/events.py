"""The record of an event, and the error of a run that has diverged."""

import math
from typing import Any, NamedTuple


class Event(NamedTuple):
    """The changes of one event: numbers of blocks, by layer name."""

    t: int  # the optimizer step
    dropped: dict[str, int]
    grown: dict[str, int]
    n: dict[str, int]  # kept after the event
    sensed: dict[str, int]  # measured off the support


class Diverged(ArithmeticError):
    """The loss, or a weight at an event, is not a finite number.

    :func:`fit` raises it with ``loss``, before the optimizer steps: weights and optimizer state are those of the last
    good step. An event raises it with ``layer``, before it changes anything.
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
