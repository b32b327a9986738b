"""Timing: the seconds of one layer of a network in a training step, in one layout.

A step is the forward pass and the gradients that training needs: of values and bias, and of the input unless it is the
input of the network. Activations and their gradients have one memory format: ``plain`` (torch's default),
``channels_last``, or ``batch_last`` (batch innermost, which is fast for csr). A sparse layer of any layout must return
this format, and its conversions are timed too. The dense layer, for comparison, returns the format that torch chooses.
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..batch_last import to_batch_last
from ..layers import SparseConv2d, SparseLayer, SparseLinear
from ..products.conv2d.reference import Geometry
from ..support import Support, grid_of

DENSE = "dense"  # the candidate nn.Linear or nn.Conv2d; all others have the names of layouts
ROUNDS = 3  # least number of rounds, even if they take more time than ``seconds``


class Work(NamedTuple):
    """One use of a layer in a training step: all that its time depends on, except layout, block and density."""

    shape: tuple[int, ...]  # of the dense weight
    geometry: Geometry | None  # None: linear
    input: tuple[int, ...]
    bias: bool
    input_gradient: bool
    weight_gradient: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, cols) of the weight."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weight."""
        return math.prod(self.shape) * self.dtype.itemsize


class Candidate(NamedTuple):
    """One way to compute a Work."""

    layout: str  # DENSE, or the name of a layout
    order: str = "plain"  # of activations in memory
    block: tuple[int, int] = (1, 1)
    density: float = 1.0  # of blocks

    def blocks(self, work: Work) -> int:
        """Number of kept blocks, at least 1."""
        return max(1, round(self.density * math.prod(grid_of(work.matrix, self.block))))

    def bytes(self, work: Work) -> int:
        """Bytes of values, their gradient and the index."""
        if self.layout == DENSE:
            return 2 * work.dense_bytes
        n, (grid_rows, grid_cols) = self.blocks(work), grid_of(work.matrix, self.block)
        values = work.dense_bytes if self.layout == "masked" else n * math.prod(self.block) * work.dtype.itemsize
        return 2 * values + 4 * (grid_rows + 1 + grid_cols + 1 + 3 * n)


Timer = Callable[[Work, Sequence[Candidate]], list[float]]  # seconds of one step of each candidate


def timed(work: Work, candidates: Sequence[Candidate], *, seconds: float, rng: torch.Generator) -> list[float]:
    """Median seconds of one step of each candidate. The candidates take turns for ``seconds``, and for at least ROUNDS
    rounds."""
    inputs: dict[str, Tensor] = {}
    steps = [_step(work, c, inputs, rng) for c in candidates]
    spent: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()  # not timed: the first call prepares memory and kernels
    begin = time.perf_counter()
    while steps and (len(spent[-1]) < ROUNDS or time.perf_counter() - begin < seconds):
        for step, record in zip(steps, spent, strict=True):
            _finish(work.device)
            start = time.perf_counter()
            step()
            _finish(work.device)
            record.append(time.perf_counter() - start)
    return [median(record) for record in spent]


def layer_of(work: Work, c: Candidate, rng: torch.Generator) -> nn.Module:
    """A layer for this work and candidate, with arbitrary values."""
    place = {"dtype": work.dtype, "device": work.device}
    if c.layout == DENSE:
        kind, sizes = (nn.Linear, ()) if work.geometry is None else (nn.Conv2d, tuple(work.geometry))
        layer = nn.utils.skip_init(kind, work.shape[1], work.shape[0], *sizes, bias=work.bias, **place)
        with torch.no_grad():
            for p in layer.parameters():
                p.fill_(1 / work.matrix[1])
        layer.weight.requires_grad_(work.weight_gradient)  # type: ignore[operator, union-attr]
        return layer.to(memory_format=torch.channels_last) if c.order == "channels_last" else layer  # type: ignore[call-overload]
    support = Support.random(work.matrix, c.blocks(work), c.block, rng)
    more = {"support": support, "bias": work.bias, "layout": c.layout, "rng": rng, **place}
    sparse: SparseLayer
    if work.geometry is None:
        sparse = SparseLinear(work.shape[1], work.shape[0], **more)  # type: ignore[arg-type]
    else:
        sparse = SparseConv2d(work.shape[1], work.shape[0], *work.geometry, **more)  # type: ignore[arg-type]
    sparse.values.requires_grad_(work.weight_gradient)
    return sparse


# -------------------------------------------------------------------- details


def _step(work: Work, c: Candidate, inputs: dict[str, Tensor], rng: torch.Generator) -> Callable[[], object]:
    """One step as a function; ``inputs`` by memory format are shared between candidates."""
    layer = layer_of(work, c, rng)
    if c.order not in inputs:
        x = torch.randn(work.input, generator=rng, dtype=work.dtype).to(work.device)
        inputs[c.order] = _ordered(x, c.order).detach().requires_grad_(work.input_gradient)
    x = inputs[c.order]
    wanted = [t for t in (*layer.parameters(), x) if t.requires_grad]

    order = "plain" if c.layout == DENSE else c.order  # a dense network makes no conversions

    def forward() -> Tensor:
        return _ordered(layer(x), order)

    y = forward()
    dy = _ordered(torch.randn(y.shape, generator=rng, dtype=work.dtype).to(y), c.order)

    def step() -> object:
        if not wanted:
            return forward()
        gradients = torch.autograd.grad(forward(), wanted, dy)
        return _ordered(gradients[-1], order) if work.input_gradient else gradients

    return step


def _ordered(x: Tensor, order: str) -> Tensor:
    """The same activations in a memory format. Only tensors of 2 or 4 dimensions are converted."""
    if order == "batch_last" and x.dim() in (2, 4):
        return to_batch_last(x)
    return x.contiguous(memory_format=torch.channels_last) if order == "channels_last" and x.dim() == 4 else x


def _finish(device: torch.device) -> None:
    """Waits until an accelerator has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
