"""Sensing: what is measured of one layer over a window of steps, smoothed. A probe belongs to the support that its coordinates are off.

    m <- decay m + (1 - decay) g       at the sensed coordinates, and on the support if that is asked for; g sums the passes of a step
    shown: m / (1 - decay^steps)

Sampled coordinates are measured in the backward pass, at once. Streamed sensing keeps the operands of one step and makes the whole
gradient from them, a block of rows at a time, when the event asks for the strongest.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._backend.dispatch import choose
from ..layers import SparseLayer
from ..observe import Observer, Seen, operands
from ..products.sense import reference as csr_sense
from ..products.sense.op import STRONGEST
from ..support import Support
from ..topology import LayerState, Sensing


@dataclass
class Probe:
    """What is measured of one layer over a window of steps."""

    layer: SparseLayer
    observer: Observer
    sense: Sensing
    support: Support
    ids: Tensor  # sensed block ids, sorted, (m,) int64
    steps: int = 0  # in the moving averages so far
    mean: Tensor | None = None  # of the gradient at ids
    active_mean: Tensor | None = None  # of the gradient on the support
    flow: tuple[Tensor, Tensor] | None = (
        None  # the last step's sums of squares of dy and x per block row and block column
    )

    def __post_init__(self) -> None:
        self.observer.start(on_support=self.sense.active)

    def measure(self, dy: Tensor, x: Tensor) -> Seen | None:
        """What one pass shows."""
        if self.layer.support is not self.support:
            return None  # the coordinates are of another support
        if self.sense.stream:
            return Seen(operands=[operands(dy, x, self.layer.values.dtype)])
        sampled = self.layer.sensed(dy, x, self.ids) if self.ids.numel() else None
        return Seen(sampled, flow=self.layer.flow(dy, x) if self.sense.flow else None)

    @property
    def blocks(self) -> int:
        """Units off the support that a step measures."""
        s = self.support
        return s.total - s.n if self.sense.stream else self.ids.numel()

    @property
    def bytes(self) -> int:
        """Bytes held."""
        held = [t for t in (self.ids, self.mean, self.active_mean) if t is not None]
        block = (
            min(csr_sense.BLOCK_NUMBERS, self.layer.dense_shape.numel()) * self.layer.values.element_size()
            if self.sense.stream
            else 0
        )
        return sum(t.numel() * t.element_size() for t in held) + self.observer.bytes + block

    def seen(self) -> Seen | None:
        """What the passes whose gradients are in ``values.grad`` have shown; None if there are none."""
        return self.observer.seen()

    def finish(self, seen: Seen | None, scale: float) -> None:
        """Ends a step that counts: its gradients, unscaled, enter the moving averages. ``seen`` is None where only other ranks saw any."""
        self.steps += 1
        seen = seen or Seen()
        if not self.sense.stream and (self.ids.numel() or not self.sense.flow):
            shape = (self.ids.numel(), *(() if self.layer.block == (1, 1) else self.layer.block))
            self.mean = _moved(self.mean, _mean(seen.sampled, shape, self.layer.values, scale), self.sense.decay)
        if self.sense.active:
            stored = self.layer.values
            active = stored.new_zeros(stored.shape) if seen.active is None else seen.active / scale
            on = self.layer.layout.compact(active, self.support)
            self.active_mean = _moved(self.active_mean, mean_over_ranks(on), self.sense.decay)
        if self.sense.flow and seen.flow is not None:
            self.flow = (mean_over_ranks(seen.flow[0].clone()), mean_over_ranks(seen.flow[1].clone()))

    def layer_state(self, size: int, start: int, lookahead: float, scale: float, has_gradient: bool) -> LayerState:
        """What an event may know of this layer."""
        layer, s = self.layer, self.support
        unbias = 1 - self.sense.decay**self.steps
        w = layer.layout.compact(layer.values.detach(), s)
        ids = self.ids if self.steps else self.ids[:0]  # nothing was seen in the whole window: nothing is known
        g = None if self.active_mean is None else self.active_mean / unbias
        h = w[:0] if self.mean is None else self.mean / unbias
        strongest = partial(self.strongest, scale=scale) if self.sense.stream else None
        return LayerState(s, w, g, ids, h, size, start, lookahead, strongest, has_gradient=has_gradient)

    def strongest(self, k: int, ties: int, scale: float) -> tuple[Tensor, Tensor]:
        """The k strongest blocks off the support by this step's gradient, streamed: ids and gradients, those that are finite; ``ties``
        decides between equals."""
        seen = self.observer.seen()
        pairs = [] if seen is None else [pair.checked(self.observer.who) for pair in seen.operands]
        if not pairs:
            return self.ids[:0], self.layer.values.detach().new_empty(
                0, *(() if self.layer.block == (1, 1) else self.layer.block)
            )
        asked = (pairs, self.support, k, self.layer.geometry, mean_over_ranks, ties)
        with torch.autocast(self.layer.values.device.type, enabled=False):
            ids, tiles = choose(STRONGEST, *asked).run(*asked)
        known = tiles.isfinite().flatten(1).all(1) if tiles.dim() > 1 else tiles.isfinite()
        return (ids, tiles / scale) if bool(known.all()) else (ids[known], tiles[known] / scale)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "ids": self.ids,
            "steps": self.steps,
            "mean": self.mean,
            "active_mean": self.active_mean,
            "flow": self.flow,
        }


def state_problems(name: str, state: Any, s: Support, present: bool = True) -> list[str]:
    """What is wrong with the saved state of a probe, in sentences; [] if it goes with the support. ``present``: ``s`` is the one that it
    was saved with; otherwise one of the same matrix."""
    keys = ("ids", "steps", "mean", "active_mean", "flow")
    if not isinstance(state, dict) or set(state) != set(keys):
        return [f"{name}: the state of a window has {', '.join(keys)}"]
    ids, steps, tile = state["ids"], state["steps"], () if s.block == (1, 1) else s.block
    if not _is_vector(ids) or not isinstance(steps, int) or steps < 0:
        return [f"{name}: ids are a vector of int64, and steps a count"]
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= s.total or bool((ids.diff() <= 0).any())):
        return [f"{name}: sensed ids must lie in [0, {s.total}) and increase"]
    problems = []
    if present and bool((s.find(ids.to(s.col.device)) >= 0).any()):
        problems.append(f"{name}: the ids that are sensed must lie off the support")
    for key, n in (("mean", ids.numel()), ("active_mean", s.n if present else None)):
        t = state[key]
        if t is None:
            continue
        fits = (
            torch.is_tensor(t)
            and t.is_floating_point()
            and t.dim() > 0
            and t.shape[1:] == tile
            and n in (None, t.shape[0])
        )
        if not fits or not bool(t.isfinite().all()):
            problems.append(
                f"{name}: {key} must hold {'as many' if n is None else n} finite gradients as there are blocks"
            )
    flow = state["flow"]
    sizes = [(grid,) for grid in s.grid]
    if flow is not None and not (
        isinstance(flow, (tuple, list)) and [tuple(getattr(t, "shape", ())) for t in flow] == sizes
    ):
        problems.append(f"{name}: flow must be a vector for the rows and one for the columns")
    return problems


def _is_vector(ids: Any) -> bool:
    return torch.is_tensor(ids) and ids.dim() == 1 and ids.dtype == torch.int64


def _mean(sampled: Tensor | None, shape: tuple[int, ...], values: Tensor, scale: float) -> Tensor:
    """A step's gradient, unscaled, over all ranks."""
    return mean_over_ranks(values.new_zeros(shape) if sampled is None else sampled / scale)


def _moved(mean: Tensor | None, now: Tensor, decay: float) -> Tensor:
    return now.mul(1 - decay) if mean is None else mean.mul_(decay).add_(now, alpha=1 - decay)


def mean_over_ranks(g: Tensor) -> Tensor:
    """In place; all ranks then rank the same numbers."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(g)
        g.div_(torch.distributed.get_world_size())
    return g


def agreed(finite: bool, seen: list[bool]) -> tuple[bool, list[bool]]:
    """Of a step on all ranks: whether all that was measured is finite, and which layers any rank has seen."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return finite, seen
    flags = torch.tensor([not finite, *seen], dtype=torch.int32)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return not bool(flags[0]), [bool(flag) for flag in flags[1:]]
