"""Sensing: what is measured of one layer over a window of steps, smoothed. A probe belongs to one support of the layer:
its coordinates lie off that.

    m <- decay m + (1 - decay) g       at the sensed coordinates, and on the support if that is asked for
    shown: m / (1 - decay^steps)       g is the sum over the passes of a step

Sampled coordinates are measured in the backward pass, at once. Streamed sensing keeps the operands of one step. When
the event asks for the strongest, the whole gradient is made from them, some rows at a time.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .._backend.dispatch import choose
from ..layers import SparseLayer
from ..observe import Observer, Seen, operands
from ..products.sense.op import STRONGEST
from ..support import Support
from ..topology import LayerState, Sensing
from .ranks import mean_over_ranks


@dataclass
class Probe:
    """What is measured of one layer over a window of steps."""

    layer: SparseLayer
    observer: Observer
    sense: Sensing
    support: Support
    ids: Tensor  # sensed block ids, sorted, (m,) int64
    steps: int = 0  # in the moving averages so far
    mean: Tensor | None = None  # of the gradient at ids, (m,) or (m, h, w)
    active_mean: Tensor | None = None  # of the gradient on the support, (n,) or (n, h, w)
    flow: tuple[Tensor, Tensor] | None = None  # of the last step: sums of squares of dy and x per block row and column

    def __post_init__(self) -> None:
        self.observer.start(on_support=self.sense.active)

    def measure(self, dy: Tensor, x: Tensor) -> Seen | None:
        """What one pass shows; None where the layer has another support by now."""
        if self.layer.support is not self.support:
            return None
        if self.sense.stream:
            return Seen(operands=[operands(dy, x, self.layer.values.dtype)])
        sampled = self.layer.sensed(dy, x, self.ids) if self.ids.numel() else None
        return Seen(sampled, flow=self.layer.flow(dy, x) if self.sense.flow else None)

    def finish(self, seen: Seen | None, scale: float) -> None:
        """Ends a step that counts: its gradients, unscaled, enter the averages. ``seen`` is None where only other ranks
        have seen something."""
        self.steps += 1
        seen = seen or Seen()
        if not self.sense.stream and (self.ids.numel() or not self.sense.flow):
            tile = () if self.layer.block == (1, 1) else self.layer.block
            g = self.layer.values.new_zeros(self.ids.numel(), *tile) if seen.sampled is None else seen.sampled / scale
            self.mean = _averaged(self.mean, mean_over_ranks(g), self.sense.decay)
        if self.sense.active:
            stored = self.layer.values
            g = stored.new_zeros(stored.shape) if seen.active is None else seen.active / scale
            on = mean_over_ranks(self.layer.layout.compact(g, self.support))
            self.active_mean = _averaged(self.active_mean, on, self.sense.decay)
        if self.sense.flow and seen.flow is not None:
            self.flow = (mean_over_ranks(seen.flow[0].clone()), mean_over_ranks(seen.flow[1].clone()))

    def added_to(self, state: LayerState, scale: float) -> LayerState:
        """What an event knows of the layer, with what this window has shown. ``scale``: of the gradients, as they
        are."""
        if not self.steps:
            return state._replace(has_gradient=False)
        unbias = 1 - self.sense.decay**self.steps
        return state._replace(
            g=None if self.active_mean is None else self.active_mean / unbias,
            ids=self.ids,
            h=state.h if self.mean is None else self.mean / unbias,
            strongest=partial(self.strongest, scale=scale) if self.sense.stream else None,
        )

    def strongest(self, k: int, ties: int, scale: float) -> tuple[Tensor, Tensor]:
        """The k strongest blocks off the support by this step's gradient, streamed: ids and gradients, without those
        that are not finite. ``ties`` decides between equals."""
        seen = self.observer.seen()
        pairs = [] if seen is None else [pair.checked(self.observer.who) for pair in seen.operands]
        if not pairs:
            tile = () if self.layer.block == (1, 1) else self.layer.block
            return self.ids[:0], self.layer.values.detach().new_empty(0, *tile)
        asked = (pairs, self.support, k, self.layer.geometry, mean_over_ranks, ties)
        with torch.autocast(self.layer.values.device.type, enabled=False):
            ids, tiles = choose(STRONGEST, *asked).run(*asked)
        known = tiles.isfinite().flatten(1).all(1) if tiles.dim() > 1 else tiles.isfinite()
        return (ids, tiles / scale) if bool(known.all()) else (ids[known], tiles[known] / scale)


def _averaged(mean: Tensor | None, now: Tensor, decay: float) -> Tensor:
    return now.mul(1 - decay) if mean is None else mean.mul_(decay).add_(now, alpha=1 - decay)
