"""y = x W^T + b for a sparse W, differentiable: the kernels are chosen here.

Eagerly an ``autograd.Function`` calls them. Where the call must be seen (``torch.compile``, FLOP counting) it is the operator
``gossamer::csr_linear`` with its fake kernels, autograd and FLOP formulas; under ``torch.func``, and for derivatives of derivatives, a
:class:`~gossamer.products.trilinear.Trilinear` of such operators; where a program for elsewhere is written down (export), torch's dense product.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from ..._backend.dispatch import Kernel, followed, foreign, full_precision, run_as, transformed, written
from ..._backend.native import batch_last, bias_gradient, turned
from ..._errors import UsageError
from ...support import Support
from ..trilinear import Trilinear, as_dense, check_index
from . import native, reference

# An operator takes a support as the seven things it is made of.
FORWARD = [native.KERNELS["forward"], Kernel("reference", reference.forward, full_precision)]
BACKWARD = [native.KERNELS["backward"], Kernel("reference", reference.backward, full_precision)]
INPUT_GRADIENT = [native.KERNELS["input_gradient"], Kernel("reference", reference.input_gradient, full_precision)]
WEIGHT_GRADIENT = [native.KERNELS["weight_gradient"], Kernel("reference", reference.weight_gradient, full_precision)]


def csr_linear(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for the sparse matrix W = (s, values).

    Args:
        x: (..., cols), any floating dtype (computed in the dtype of ``values``, returned in that of ``x``).
        values: (n,), or (n, h, w) for blocks of (h, w); float32 or float64 (bfloat16 on the native kernels, which compute in float32).
        s: the support, on the same device.
        bias: (rows,) or None.

    Returns: (..., rows), the batch innermost in memory.
    """
    if not x.is_floating_point():
        raise UsageError("csr_linear", "the input must be of a floating dtype", got=x.dtype)
    flat = x if x.dim() == 2 else x.reshape(-1, s.shape[1])
    if foreign(x, values, bias):
        y = _seen(flat, values, s, bias)
    else:
        y = _apply(turned(flat), values, bias, s) if torch.is_grad_enabled() else product(flat, values, s, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], s.shape[0])


def product(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    """The chosen kernel's (B, rows), batch-last, in the dtype of ``x``."""
    if bias is not None and bias.dtype is not values.dtype:
        bias = bias.to(values.dtype)
    y = run_as(FORWARD, values.dtype, x, values, s, bias)
    return batch_last(y if y.dtype is x.dtype else y.to(x.dtype))


def gradients(
    dy: Tensor, x: Tensor, values: Tensor, s: Support, of_x: bool, of_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The chosen kernels' input gradient, batch-last, in the dtype of ``dy``, and weight gradient, as far as asked for."""
    dtype, dx, dw = values.dtype, None, None
    x = x if x.dtype == dy.dtype else x.to(dy.dtype)
    if of_x and of_w:
        dx, dw = run_as(BACKWARD, dtype, dy, x, values, s)
    elif of_x:
        dx = run_as(INPUT_GRADIENT, dtype, dy, values, s)
    elif of_w:
        dw = run_as(WEIGHT_GRADIENT, dtype, dy, x, s)
    if dx is not None:
        dx = batch_last(dx if dx.dtype is dy.dtype else dx.to(dy.dtype))
    return dx, dw if dw is None or dw.dtype is dtype else dw.to(dtype)


def _seen(x: Tensor, values: Tensor, s: Support, bias: Tensor | None) -> Tensor:
    """The same for those who follow the call."""
    if written():
        return F.linear(x.to(values.dtype), as_dense(values, s), bias).to(x.dtype)
    if transformed():
        check_index("csr_linear", s.crow, s.col)
        y = trilinear(s, values.dtype).slope(0, x, values)
    else:
        y = _forward(x, values, *_index(s))
    return y if bias is None else y + bias.to(y.dtype)


def trilinear(s: Support, dtype: torch.dtype) -> Trilinear:
    """The product as a form of (dy, x, values), for values of this dtype."""
    index = _index(s)

    def dw(dy: Tensor, x: Tensor) -> Tensor:
        like = dy.new_empty((), dtype=dtype).expand(s.n, *(() if s.block == (1, 1) else s.block))
        return _dw(dy, x, like, *index)

    return Trilinear((lambda x, v: _forward(x, v, *index), lambda dy, v: _dx(dy, v, *index), dw))


def _index(s: Support) -> tuple[Any, ...]:
    return s.crow, s.col, s.ccol, s.row, s.perm, *s.shape, *s.block


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, s):
        ctx.save_for_backward(x, values)
        ctx.support, ctx.bias = s, None if bias is None else bias.dtype
        return product(x, values, s, bias)

    @staticmethod
    def backward(ctx, dy):
        x, values = ctx.saved_tensors
        of_x, of_w, of_b, _ = ctx.needs_input_grad
        if followed(dy):
            dx, dw = trilinear(ctx.support, values.dtype).gradients(0, x, values, dy, (of_x, of_w))
            return dx, dw, dy.sum(0).to(ctx.bias) if of_b else None, None
        dx, dw = gradients(dy, x, values, ctx.support, of_x, of_w)
        return dx, dw, bias_gradient(dy, ctx.bias) if of_b else None, None


# Without torch's look for torch.func, which foreign() has had.
_apply: Any = super(torch.autograd.Function, _Product).apply  # type: ignore[misc]


# ---------------------------------------------------------------- the same as operators


@torch.library.custom_op("gossamer::csr_linear", mutates_args=())
def _forward(
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
    return product(x, values, Support((rows, cols), (h, w), crow, col, ccol, row, perm))


@torch.library.custom_op("gossamer::csr_linear_dx", mutates_args=())
def _dx(
    dy: Tensor,
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
    return gradients(dy, dy, values, s, True, False)[0]  # type: ignore[return-value]


@torch.library.custom_op("gossamer::csr_linear_dw", mutates_args=())
def _dw(
    dy: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int,
) -> Tensor:  # fmt: skip
    s = Support((rows, cols), (h, w), crow, col, ccol, row, perm)
    return gradients(dy, x, values, s, False, True)[1].contiguous()  # type: ignore[union-attr]


@torch.library.custom_op("gossamer::csr_linear_backward", mutates_args=())
def _dx_dw(
    dy: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    s = Support((rows, cols), (h, w), crow, col, ccol, row, perm)
    return gradients(dy, x, values, s, True, True)  # type: ignore[return-value]


@_forward.register_fake
def _(x, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return x.new_empty(rows, x.shape[0]).t()


@_dx.register_fake
def _(dy, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return dy.new_empty(cols, dy.shape[0]).t()


@_dw.register_fake
def _(dy, x, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@_dx_dw.register_fake
def _(dy, x, values, crow, col, ccol, row, perm, rows, cols, h, w):
    return dy.new_empty(cols, dy.shape[0]).t(), torch.empty_like(values, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    x, values, *index = inputs
    ctx.sizes = index[5:]
    ctx.save_for_backward(x, values, *index[:5])


def _backward(ctx, dy):
    x, values, *index = ctx.saved_tensors
    of_x, of_w = ctx.needs_input_grad[:2]
    dx = dw = None
    if of_x and of_w:
        dx, dw = _dx_dw(dy, x, values, *index, *ctx.sizes)
    elif of_x:
        dx = _dx(dy, values, *index, *ctx.sizes)
    elif of_w:
        dw = _dw(dy, x, values, *index, *ctx.sizes)
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


@register_flop_formula(torch.ops.gossamer.csr_linear_backward)
def _dx_dw_flops(dy_shape, x_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 4 * dy_shape[0] * torch.Size(values_shape).numel()
