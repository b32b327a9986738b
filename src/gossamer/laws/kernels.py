"""The law of the kernels of products."""

# A kernel returns one tensor or several, and torch leaves Tensor.tolist without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._backend.dispatch import Kernel
from ..layouts import gather, scatter
from ..products.conv2d.reference import Geometry
from ..support import Support
from ..topology.slots import block_norm
from .details import TOLERANCE, close, demand
from .operands import bias_of, operands, poisoned_memory, some_zeros

Expected = list[tuple[Tensor, bool]]  # results, each with whether it is an activation or the gradient of one


def check_kernel(
    operation: str,
    kernel: Kernel,
    s: Support,
    g: Geometry | None = None,
    *,
    batch: int = 5,
    size: tuple[int, int] = (7, 6),
    dtype: torch.dtype = torch.float64,
    biased: bool = False,
    strange: bool = False,
) -> bool:
    """A kernel computes the dense product, for inputs in any memory order. Two calls give the same bits.

    It does not change its inputs, and writes every entry of its output.

    Args:
        operation: ``csr_linear.`` or ``csr_conv2d.`` and ``forward``, ``backward``, ``input_gradient`` or
            ``weight_gradient``; ``csr_sense.sampled`` or ``csr_sense.strongest``.
        kernel: the kernel.
        s: the support.
        g: geometry of the convolution; None is a linear layer.
        batch: batch size of the inputs.
        size: height and width of the inputs of a convolution.
        dtype: dtype of the activations. For bfloat16 the values are float32, and the kernel must compute in float32: it
            multiplies the rounded activations, and rounds the result once if it is an activation.
        biased: pass a bias to ``forward``.
        strange: test channels-last inputs and views with gaps too, in addition to contiguous and batch-last inputs.

    Returns: False if the ``reasons_against`` of the kernel say that it cannot run here, which breaks no law.
    Raises: AssertionError.
    """
    geometry = f", {g}, {size}" if g else ""
    where = f"{operation} by {kernel.name!r} on {s.shape} in blocks of {s.block}, n={s.n}{geometry}"
    where = f"{where}, batch {batch}, {dtype}"
    x, dy, values = operands(s, g, batch, size, dtype)
    bias = bias_of(s, values.dtype) if biased else None
    expected = _expected(operation, x.to(values.dtype), dy.to(values.dtype), values, s, g, bias)
    orders: list[Callable[[Tensor], Tensor]] = [torch.Tensor.contiguous, _batch_last]
    for order in (*orders, *((_channels_last, _gapped) if strange else ())):
        arguments = _arguments(operation, order(x), order(dy), values, s, g, size, bias)
        reasons: list[object] = [*kernel.reasons_against(*arguments)]
        sentences = all(isinstance(reason, str) for reason in reasons)
        demand(sentences, f"{where}: reasons_against must give sentences")
        if reasons:
            return False
        _check_run(kernel, arguments, [(t.to(dtype) if activation else t) for t, activation in expected], where)
    return True


def _check_run(kernel: Kernel, arguments: Sequence[Any], expected: Sequence[Tensor], where: str) -> None:
    """Two calls with the same arguments."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    kept = copy.deepcopy(tensors)
    with poisoned_memory():
        got, again = kernel.run(*arguments), kernel.run(*arguments)
    unchanged = all(torch.equal(a, b) for a, b in zip(kept, tensors, strict=True))
    demand(unchanged, f"{where}: the inputs must not change")
    results = [r if isinstance(r, tuple) else (r,) for r in (got, again)]
    for a, b, exact in zip(*results, expected, strict=True):
        demand(a.shape == exact.shape, f"{where}: shape {tuple(a.shape)}, must be {tuple(exact.shape)}")
        demand(a.dtype == exact.dtype, f"{where}: dtype {a.dtype}, must be {exact.dtype}")
        demand(not bool(a.isnan().any()), f"{where}: some of the output was never written")
        close(a, exact, f"{where}: must be the dense product's", TOLERANCE[a.dtype])
        demand(torch.equal(a, b), f"{where}: two runs must give the same bits")


def _arguments(
    operation: str,
    x: Tensor,
    dy: Tensor,
    values: Tensor,
    s: Support,
    g: Geometry | None,
    size: tuple[int, int],
    bias: Tensor | None,
) -> tuple[Any, ...]:
    """The arguments of the kernels of an operation."""
    conv = () if g is None else (g,)
    table: dict[str, tuple[Any, ...]] = {
        "forward": (x, values, s, *conv, *(() if bias is None else (bias,))),
        "backward": (dy, x, values, s, *conv),
        "input_gradient": (dy, values, s, *conv, *(() if g is None else (size,))),
        "weight_gradient": (dy, x, s, *conv),
        "sampled": (dy, x, some_zeros(s), s.shape, s.block, g),
        "strongest": ([(dy, x), (dy, 0.5 * x)], s, (s.total - s.n + 1) // 2, g),
    }
    return table[operation.split(".")[1]]


def _expected(
    operation: str, x: Tensor, dy: Tensor, values: Tensor, s: Support, g: Geometry | None, bias: Tensor | None
) -> Expected:
    """The results of the dense layer."""
    dense, x = scatter(values, s).requires_grad_(), x.detach().clone().requires_grad_()
    shape = s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel)
    y = F.linear(x, dense, bias) if g is None else F.conv2d(x, dense.view(shape), bias, g.stride, g.padding, g.dilation)
    dx, dw = torch.autograd.grad(y, (x, dense), dy)
    what = operation.split(".")[1]
    if what == "sampled":
        return [(gather(dw, Support.from_ids(some_zeros(s), s.shape, s.block)), False)]
    if what == "strongest":
        zeros = Support.from_ids(s.outside(torch.arange(s.total - s.n)), s.shape, s.block)
        tiles = 1.5 * gather(dw, zeros)  # of two micro-batches, x and x / 2
        ranked = sorted(zip((-block_norm(tiles)).tolist(), range(zeros.n), strict=True))[: (s.total - s.n + 1) // 2]
        at = torch.tensor(sorted(i for _, i in ranked), dtype=torch.int64)
        return [(zeros.ids()[at], False), (tiles[at], False)]
    forward, of_x, of_w = (y.detach(), True), (dx, True), (gather(dw, s), False)
    return {"forward": [forward], "backward": [of_x, of_w], "input_gradient": [of_x], "weight_gradient": [of_w]}[what]


# -------------------------------------------------------------------- memory orders


def _batch_last(t: Tensor) -> Tensor:
    return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _gapped(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]
