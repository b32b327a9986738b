"""The torch operators ``gossamer::csr_linear`` and its two gradients: fake kernels, autograd, FLOP formulas; the kernel is chosen here."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ...errors import Unfit
from ...support import Support
from ..kernels import Kernel, full_precision, run
from . import reference

# An operator takes a support as the seven things it is made of.
FORWARD = [Kernel("reference", reference.forward, full_precision)]
INPUT_GRADIENT = [Kernel("reference", reference.input_gradient, full_precision)]
WEIGHT_GRADIENT = [Kernel("reference", reference.weight_gradient, full_precision)]


def csr_linear(x: Tensor, values: Tensor, s: Support) -> Tensor:
    """x W^T for the sparse matrix W = (s, values).

    Args:
        x: (..., cols), any floating dtype (computed in the dtype of ``values``, returned in that of ``x``).
        values: (n,), or (n, h, w) for units of (h, w); float32 or float64.
        s: the support, on the same device.

    Returns: (..., rows), the batch innermost in memory.
    """
    if not x.is_floating_point():
        raise Unfit("csr_linear", "the input must be of a floating dtype", got=x.dtype)
    flat = x.reshape(-1, s.shape[1])
    y = _forward(flat, values, s.crow, s.col, s.ccol, s.row, s.perm, *s.shape, *s.unit)
    return y.view(*x.shape[:-1], s.shape[0])


def batch_last(y: Tensor) -> Tensor:
    """The same (B, features) matrix with the batch innermost in memory: what a sparse product makes, and what the next one wants."""
    return y.t().contiguous().t()


@torch.library.custom_op("gossamer::csr_linear", mutates_args=())
def _forward(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor, rows: int, cols: int, h: int, w: int
) -> Tensor:
    s = Support((rows, cols), (h, w), crow, col, ccol, row, perm)
    x32 = x.to(values.dtype)
    y = run(FORWARD, x32, values, s)
    return batch_last(y.to(x.dtype))


@torch.library.custom_op("gossamer::csr_linear_dx", mutates_args=())
def _dx(
    dy: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor, rows: int, cols: int, h: int, w: int
) -> Tensor:
    s = Support((rows, cols), (h, w), crow, col, ccol, row, perm)
    dy32 = dy.to(values.dtype)
    return batch_last(run(INPUT_GRADIENT, dy32, values, s).to(dy.dtype))


@torch.library.custom_op("gossamer::csr_linear_dw", mutates_args=())
def _dw(
    dy: Tensor,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    row: Tensor,
    perm: Tensor,
    rows: int,
    cols: int,
    h: int,
    w: int,
) -> Tensor:
    s = Support((rows, cols), (h, w), crow, col, ccol, row, perm)
    dy, x = dy.to(values.dtype), x.to(values.dtype)
    return run(WEIGHT_GRADIENT, dy, x, s).contiguous()


@_forward.register_fake
def _(x, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return x.new_empty(rows, x.shape[0]).t()


@_dx.register_fake
def _(dy, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return dy.new_empty(cols, dy.shape[0]).t()


@_dw.register_fake
def _(dy, x, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    x, values, *index = inputs
    ctx.sizes = index[5:]
    ctx.save_for_backward(x, values, *index[:5])


def _backward(ctx, dy):
    x, values, *index = ctx.saved_tensors
    needs_x, needs_w = ctx.needs_input_grad[:2]
    dx = _dx(dy, values, *index, *ctx.sizes) if needs_x else None
    dw = _dw(dy, x, values, *index, *ctx.sizes) if needs_w else None
    return dx, dw, *[None] * 9


_forward.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.gossamer.csr_linear)
def _forward_flops(x_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 2 * x_shape[0] * torch.Size(values_shape).numel()


@register_flop_formula(torch.ops.gossamer.csr_linear_dx)
def _dx_flops(dy_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 2 * dy_shape[0] * torch.Size(values_shape).numel()


@register_flop_formula(torch.ops.gossamer.csr_linear_dw)
def _dw_flops(dy_shape, x_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 2 * dy_shape[0] * torch.Size(values_shape).numel()
