"""Sensing: what is measured of one layer over a window of steps. A probe hangs on a layer and listens to its backward passes.

off the support    the layer tells its hook (dy, x); sampled coordinates are measured at once, streamed sensing keeps the operands
on the support     a hook on the values sees their gradient as it comes, before anybody clips or unscales it
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layers import SparseLayer
from .ops.csr_sense import reference as csr_sense
from .ops.csr_sense.op import STRONGEST
from .ops.kernels import choose
from .topology.topology import Sense, Site


@dataclass
class Probe:
    """What is measured of one layer over a window of steps: called as ``layer.sense`` with (dy, x) by every backward pass."""

    layer: SparseLayer
    sense: Sense
    ids: Tensor  # sensed unit ids, sorted, (m,) int64
    steps: int = 0  # in the moving average so far
    mean: Tensor | None = None  # of the gradient at ids
    active_mean: Tensor | None = None  # of the gradient on the support
    now: Tensor | None = None  # this step's gradient at ids, summed over micro-batches
    active_now: Tensor | None = None  # ... and of the stored values, before anybody clips it
    handle: Any = None  # of the hook on the values that fills it
    flow: tuple[Tensor, Tensor] | None = None  # this step's sums of squares of dy and x per unit row and unit column
    flow_now: tuple[Tensor, Tensor] | None = None  # ... so far
    operands: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # this step's (dy, x), when streaming

    def __call__(self, dy: Tensor, x: Tensor) -> None:
        if self.sense.stream:
            dtype = self.layer.values.dtype
            self.operands.append((dy.to(dtype), x.to(dtype)))
            return
        if self.ids.numel():
            measured = self.layer.sensed(dy, x, self.ids)
            self.now = measured if self.now is None else self.now.add_(measured)
        if self.sense.flow:
            flow = self.layer.flow(dy, x)
            self.flow_now = flow if self.flow_now is None else (self.flow_now[0] + flow[0], self.flow_now[1] + flow[1])

    def attach(self) -> "Probe":
        """From now on the layer's backward pass reports here."""
        self.layer.sense = self
        if self.sense.active:
            self.handle = self.layer.values.register_hook(self._on_support)
        return self

    def release(self) -> None:
        """No more."""
        self.layer.sense = None
        if self.handle is not None:
            self.handle.remove()

    def _on_support(self, grad: Tensor) -> None:
        self.active_now = grad.detach().clone() if self.active_now is None else self.active_now.add_(grad.detach())

    @property
    def units(self) -> int:
        """Units off the support that a step measures."""
        s = self.layer.support
        return s.total - s.n if self.sense.stream else self.ids.numel()

    @property
    def bytes(self) -> int:
        """Bytes held."""
        held = [t for t in (self.ids, self.mean, self.active_mean, self.now, self.active_now) if t is not None] + [
            t for pair in self.operands for t in pair
        ]
        block = min(csr_sense.BLOCK_NUMBERS, self.layer.dense_shape.numel()) * self.layer.values.element_size() if self.sense.stream else 0
        return sum(t.numel() * t.element_size() for t in held) + block

    def discard(self) -> None:
        """Forgets what the step in progress has measured so far."""
        self.now, self.active_now, self.flow_now, self.operands = None, None, None, []

    def finish(self, scale: float, finite: bool = True) -> None:
        """Ends a step: its gradients, unscaled, enter the moving averages; those of a step that overflowed do not."""
        if not finite:
            return self.discard()
        self.steps += 1
        if not self.sense.stream:
            shape = (self.ids.numel(), *(() if self.layer.unit == (1, 1) else self.layer.unit))
            now = self.layer.values.new_zeros(shape) if self.now is None else self.now.div_(scale)
            if scale != 1.0 and not bool(now.isfinite().all()):  # a step that the GradScaler skips measures nothing
                now.zero_()
            self.mean = _moved(self.mean, mean_over_ranks(now), self.sense.decay)
        if self.sense.active:
            stored = torch.zeros_like(self.layer.values) if self.active_now is None else self.active_now.div_(scale)
            on = self.layer.layout.compact(stored, self.layer.support)
            self.active_mean = _moved(self.active_mean, mean_over_ranks(on), self.sense.decay)
        if self.flow_now is not None:
            self.flow = (mean_over_ranks(self.flow_now[0]), mean_over_ranks(self.flow_now[1]))
        self.now = self.active_now = self.flow_now = None

    def site(self, size: int, start: int, lookahead: float, scale: float) -> Site:
        """What an event may know of this layer."""
        layer, s = self.layer, self.layer.support
        unbias = 1 - self.sense.decay**self.steps
        w = layer.layout.compact(layer.values.detach(), s)
        ids = self.ids if self.steps else self.ids[:0]  # every step of the window overflowed: nothing is known, nothing can grow
        g = None if self.active_mean is None else self.active_mean / unbias
        h = w[:0] if self.mean is None else self.mean / unbias
        strongest = partial(self.strongest, scale=scale) if self.sense.stream and self.operands else None
        return Site(s, w, g, ids, h, size, start, lookahead, strongest)

    def strongest(self, k: int, ties: int, scale: float) -> tuple[Tensor, Tensor]:
        """The k strongest units off the support by this step's gradient, streamed: ids and gradients; ``ties`` decides between equals."""
        asked = (self.operands, self.layer.support, k, self.layer.geometry, mean_over_ranks, ties)
        with torch.autocast(self.layer.values.device.type, enabled=False):
            ids, tiles = choose(STRONGEST, *asked).run(*asked)
        return ids, tiles / scale


def _moved(mean: Tensor | None, now: Tensor, decay: float) -> Tensor:
    return now.mul(1 - decay) if mean is None else mean.mul_(decay).add_(now, alpha=1 - decay)


def mean_over_ranks(g: Tensor) -> Tensor:
    """In place; all ranks then rank the same numbers."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(g)
        g.div_(torch.distributed.get_world_size())
    return g
