# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""A diagnosis of every event of a training."""

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...layers import SparseLayer
from ...observe import Operands as Kept
from ...observe import operands as kept
from ...support import Support
from ...topology import Sensing
from ...training.events import Event
from ...training.stepper import Stepper
from .diagnosis import Diagnosis
from .operands import not_finite
from .recall import sensing


class _Seen(NamedTuple):
    """The observations of one layer on the step of an event."""

    passes: list[Kept]
    support: Support  # before the event
    sensed: int  # zeros that the step measures


class Watch:
    """Diagnoses every event of a training: pass it to ``fit(on_step=...)``, or call it after each ``rewirer.step()``.

    It observes the layers on event steps, and keeps their operands until it is called. If the operands hold NaN or
    infinities, as on a step that a loss scaler skips, the figures are NaN and the sentence gives the reason. Layers
    with blocks, and batches of one sample, are not diagnosed.

    Args:
        rewirer: a :class:`~gossamer.Rewirer`, or a :class:`~gossamer.Multilevel`.
        path: a file; each event adds one line of JSON per layer.
        tell: called with each :class:`Diagnosis`, as in ``lambda d: print(d.sentence)``.

    Attributes:
        last: the diagnoses of the last step, by layer; {} if it had no event.
    """

    def __init__(
        self,
        rewirer: Stepper,
        path: str | Path | None = None,
        tell: Callable[[Diagnosis], object] | None = None,
    ):
        self.rewirer, self.path, self.tell = rewirer, None if path is None else Path(path), tell
        self.last: dict[str, Diagnosis] = {}
        self._seen: dict[str, _Seen] = {}
        self._open = ExitStack()
        for name, layer in rewirer.layers.items():
            if layer.block == (1, 1):
                self._open.enter_context(layer.observe(partial(self._keep, name, layer)))

    def close(self) -> None:
        """Stops the observation of the layers."""
        self._open.close()

    def _keep(self, name: str, layer: SparseLayer, dy: Tensor, x: Tensor) -> None:
        """Keeps the operands of a backward pass of a layer."""
        if not self.rewirer.is_event(self.rewirer.t + 1):
            return
        if name not in self._seen:
            self._seen[name] = _Seen([], layer.support, self.rewirer.sensing.get(name, 0))
        self._seen[name].passes.append(kept(dy, x, layer.values.dtype))

    def __call__(self, *_: object) -> dict[str, Diagnosis]:
        """Returns the diagnoses of the last step, by layer; {} if it had no event."""
        event, self.last = self.rewirer.last, {}
        if event is not None:
            seen = {name: self._seen[name] for name in self.rewirer.layers if name in self._seen}
            found = {name: self._diagnosed(name, shown, event) for name, shown in seen.items()}
            self.last = {name: d for name, d in found.items() if d is not None}
        self._seen = {}
        for d in self.last.values():
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"step": self.rewirer.t, **d.record()}) + "\n")
            if self.tell is not None:
                self.tell(d)
        return self.last

    def _diagnosed(self, name: str, seen: _Seen, event: Event) -> Diagnosis | None:
        pairs = [operands.checked(name) for operands in seen.passes]
        if not pairs or min(dy.shape[0] for dy, _ in pairs) < 2:
            return None
        s, n_grow, (asked, window) = seen.support, event.grown.get(name, 0), self._window(event.t)
        fraction = min(1.0, seen.sensed / max(1, s.total - s.n))
        if not_finite(pairs) is not None:
            batch, zeros, nan = pairs[0][0].shape[0], s.total - s.n, math.nan
            return Diagnosis(name, batch, window, zeros, fraction, n_grow, nan, nan, nan, nan, nan, nan, nan, None)
        return sensing(
            pairs,
            s,
            n_grow=n_grow,
            fraction=fraction,
            window=window,
            decay=0.0 if asked is None else asked.decay,
            geometry=self.rewirer.layers[name].geometry,
            name=name,
        )

    def _window(self, t: int) -> tuple[Sensing | None, int]:
        """What step t senses, and the number of steps since its window began."""
        sense = self.rewirer.sense
        for w in range(1, 1000):
            if (asked := sense(t - w + 1)) is None or asked.fresh:
                return sense(t), w
        return sense(t), 1
