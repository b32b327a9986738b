"""Sensing: measures the gradient of one layer over a window of steps, and averages it. A probe belongs to one support
of the layer: the blocks that it senses lie off this support.

    m <- decay m + (1 - decay) g       at the sensed blocks; with ``Sensing(active=True)`` on the support too
    result: m / (1 - decay^steps)      g is the sum over the backward passes of a step

Sampled blocks are measured directly in the backward pass. Streamed sensing keeps the operands of one step. The event
then computes the whole gradient from them, some rows at a time, and keeps the strongest blocks.
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
    """The measurements of one layer over a window of steps."""

    layer: SparseLayer
    observer: Observer
    sense: Sensing
    support: Support
    ids: Tensor  # sensed block ids, sorted, (m,) int64
    steps: int = 0  # number of steps in the moving averages
    mean: Tensor | None = None  # of the gradient at ids, (m,) or (m, h, w)
    active_mean: Tensor | None = None  # of the gradient on the support, (n,) or (n, h, w)
    flow: tuple[Tensor, Tensor] | None = None  # last step's sums of squares of dy and x, per block row and column

    def __post_init__(self) -> None:
        self.observer.start(on_support=self.sense.active)

    def measure(self, dy: Tensor, x: Tensor) -> Seen | None:
        """Measures one backward pass; None if the layer has another support now."""
        if self.layer.support is not self.support:
            return None
        if self.sense.stream:
            return Seen(operands=[operands(dy, x, self.layer.values.dtype)])
        sampled = self.layer.sensed(dy, x, self.ids) if self.ids.numel() else None
        return Seen(sampled, flow=self.layer.flow(dy, x) if self.sense.flow else None)

    def finish(self, seen: Seen | None, scale: float) -> None:
        """Adds the gradients of one step, divided by ``scale``, to the averages. ``seen`` is None if only other ranks
        have measured something."""
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
        """The state of the layer at an event, with the averages of this window. ``scale``: the factor on the present
        gradients."""
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
        """Ids and gradients of the k blocks off the support with the largest gradient of this step, streamed. Gradients
        that are not finite are left out. ``ties`` decides between equals."""
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
