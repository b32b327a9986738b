"""Convolution by a sparse kernel, differentiable: the kernels are chosen here, as in :mod:`..csr_linear.op`."""

from collections.abc import Sequence
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
from .reference import Geometry

FORWARD = [native.KERNELS["forward"], Kernel("reference", reference.forward, full_precision)]
BACKWARD = [native.KERNELS["backward"], Kernel("reference", reference.backward, full_precision)]
INPUT_GRADIENT = [native.KERNELS["input_gradient"], Kernel("reference", reference.input_gradient, full_precision)]
WEIGHT_GRADIENT = [native.KERNELS["weight_gradient"], Kernel("reference", reference.weight_gradient, full_precision)]


def csr_conv2d(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
    """Convolution of ``x`` with the sparse kernel (s, values), plus bias.

    Args:
        x: (B, in, H, W), any floating dtype (computed in the dtype of ``values``, returned in that of ``x``).
        values: (n,), or (n, h, w) for blocks of (h, w); float32 or float64 (bfloat16 on the native kernels, which compute in float32).
        s: the support over the matrix (out, in kh kw).
        g: kernel size, stride, padding, dilation.
        bias: (out,) or None.

    Returns: (B, out, H', W'), the batch innermost in memory.
    """
    if foreign(x, values, bias):
        return _seen(x, values, s, g, bias)
    _check(x, s, g)
    return _apply(turned(x), values, bias, s, g) if torch.is_grad_enabled() else product(x, values, s, g, bias)


def _check(x: Tensor, s: Support, g: Geometry) -> None:
    """Refuses what is no image of the right size."""
    channels = s.shape[1] // (g.kernel[0] * g.kernel[1])
    if x.dim() != 4 or x.shape[1] != channels:
        raise UsageError("csr_conv2d", f"the input must be (batch, {channels}, height, width)", got=tuple(x.shape))
    if not x.is_floating_point():
        raise UsageError("csr_conv2d", "the input must be of a floating dtype", got=x.dtype)
    if min(x.shape[2:]) < 1 or min(g.out(*x.shape[2:])) < 1:
        raise UsageError(
            "csr_conv2d",
            f"the padded image must be at least as large as the kernel {g.kernel}, dilated",
            got=tuple(x.shape),
        )


def product(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
    """The chosen kernel's (B, out, H', W'), batch-last, in the dtype of ``x``."""
    if bias is not None and bias.dtype is not values.dtype:
        bias = bias.to(values.dtype)
    y = run_as(FORWARD, values.dtype, x, values, s, g, bias)
    return batch_last(y if y.dtype is x.dtype else y.to(x.dtype))


def gradients(
    dy: Tensor, x: Tensor | None, values: Tensor, s: Support, g: Geometry, size: tuple[int, int], of_x: bool, of_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The chosen kernels' input gradient, batch-last, in the dtype of ``dy``, and weight gradient, as far as asked for."""
    dtype, dx, dw = values.dtype, None, None
    if x is not None and x.dtype != dy.dtype:
        x = x.to(dy.dtype)
    if of_x and of_w:
        dx, dw = run_as(BACKWARD, dtype, dy, x, values, s, g)
    elif of_x:
        dx = run_as(INPUT_GRADIENT, dtype, dy, values, s, g, size)
    elif of_w:
        dw = run_as(WEIGHT_GRADIENT, dtype, dy, x, s, g)
    if dx is not None:
        dx = batch_last(dx if dx.dtype is dy.dtype else dx.to(dy.dtype))
    return dx, dw if dw is None or dw.dtype is dtype else dw.to(dtype)


def _seen(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None) -> Tensor:
    """The same for those who follow the call."""
    if written():
        kernel = as_dense(values, s).view(s.shape[0], -1, *g.kernel)
        return F.conv2d(x.to(values.dtype), kernel, bias, g.stride, g.padding, g.dilation).to(x.dtype)
    _check(x, s, g)
    if transformed():
        check_index("csr_conv2d", s.crow, s.col)
        y = trilinear(s, g, values.dtype, (x.shape[2], x.shape[3])).slope(0, x, values)
    else:
        y = _forward(x, values, *_index(s, g))
    return y if bias is None else y + bias.to(y.dtype).view(1, -1, 1, 1)


def trilinear(s: Support, g: Geometry, dtype: torch.dtype, size: tuple[int, int]) -> Trilinear:
    """The product as a form of (dy, x, values), for values of this dtype and images of this size."""
    index = _index(s, g)

    def dw(dy: Tensor, x: Tensor) -> Tensor:
        like = dy.new_empty((), dtype=dtype).expand(s.n, *(() if s.block == (1, 1) else s.block))
        return _dw(dy, x, like, *index)

    return Trilinear((lambda x, v: _forward(x, v, *index), lambda dy, v: _dx(dy, v, *index, *size), dw))


def _index(s: Support, g: Geometry) -> tuple[Any, ...]:
    return s.crow, s.col, s.ccol, s.row, s.perm, *s.shape, *s.block, [v for pair in g for v in pair]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, s, g):
        ctx.save_for_backward(x, values)
        ctx.support, ctx.geometry, ctx.bias = s, g, None if bias is None else bias.dtype
        return product(x, values, s, g, bias)

    @staticmethod
    def backward(ctx, dy):
        x, values = ctx.saved_tensors
        of_x, of_w, of_b, *_ = ctx.needs_input_grad
        s, g = ctx.support, ctx.geometry
        if followed(dy):
            dx, dw = trilinear(s, g, values.dtype, x.shape[2:]).gradients(0, x, values, dy, (of_x, of_w))
            return dx, dw, dy.sum((0, 2, 3)).to(ctx.bias) if of_b else None, None, None
        dx, dw = gradients(dy, x, values, s, g, x.shape[2:], of_x, of_w)
        return dx, dw, bias_gradient(dy, ctx.bias) if of_b else None, None, None


# Without torch's look for torch.func, which foreign() has had.
_apply: Any = super(torch.autograd.Function, _Product).apply  # type: ignore[misc]


# ---------------------------------------------------------------- the same as operators


def _geometry(flat: Sequence[int]) -> Geometry:
    return Geometry((flat[0], flat[1]), (flat[2], flat[3]), (flat[4], flat[5]), (flat[6], flat[7]))


@torch.library.custom_op("gossamer::csr_conv2d", mutates_args=())
def _forward(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    return product(x, values, Support((rows, cols), (h, w), crow, col, ccol, row, perm), _geometry(geometry))


@torch.library.custom_op("gossamer::csr_conv2d_dx", mutates_args=())
def _dx(
    dy: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int], height: int, width: int,
) -> Tensor:  # fmt: skip
    s = Support((rows, cols), (h, w), crow, col, ccol, row, perm)
    return gradients(dy, None, values, s, _geometry(geometry), (height, width), True, False)[0]  # type: ignore[return-value]


@torch.library.custom_op("gossamer::csr_conv2d_dw", mutates_args=())
def _dw(
    dy: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    s, size = Support((rows, cols), (h, w), crow, col, ccol, row, perm), (x.shape[2], x.shape[3])
    return gradients(dy, x, values, s, _geometry(geometry), size, False, True)[1]  # type: ignore[return-value]


@torch.library.custom_op("gossamer::csr_conv2d_backward", mutates_args=())
def _dx_dw(
    dy: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    s, size = Support((rows, cols), (h, w), crow, col, ccol, row, perm), (x.shape[2], x.shape[3])
    return gradients(dy, x, values, s, _geometry(geometry), size, True, True)  # type: ignore[return-value]


def _fake(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(*shape[1:], shape[0]).movedim(-1, 0)


@_forward.register_fake
def _(x, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry):
    return _fake(x, x.shape[0], rows, *_geometry(geometry).out(*x.shape[2:]))


@_dx.register_fake
def _(dy, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry, height, width):
    kernel = _geometry(geometry).kernel
    return _fake(dy, dy.shape[0], cols // (kernel[0] * kernel[1]), height, width)


@_dw.register_fake
def _(dy, x, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@_dx_dw.register_fake
def _(dy, x, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry):
    return _fake(dy, *x.shape), torch.empty_like(values, memory_format=torch.contiguous_format)


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
        dx = _dx(dy, values, *index, *ctx.sizes, *x.shape[2:])
    elif of_w:
        dw = _dw(dy, x, values, *index, *ctx.sizes)
    return dx, dw, *[None] * 10


_forward.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.gossamer.csr_conv2d)
def _forward_flops(x_shape, values_shape, *_, out_shape, **__) -> int:
    return 2 * x_shape[0] * out_shape[2] * out_shape[3] * torch.Size(values_shape).numel()


@register_flop_formula(torch.ops.gossamer.csr_conv2d_dx)
def _dx_flops(dy_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * torch.Size(values_shape).numel()


@register_flop_formula(torch.ops.gossamer.csr_conv2d_dw)
def _dw_flops(dy_shape, x_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 2 * dy_shape[0] * dy_shape[2] * dy_shape[3] * torch.Size(values_shape).numel()


@register_flop_formula(torch.ops.gossamer.csr_conv2d_backward)
def _dx_dw_flops(dy_shape, x_shape, values_shape, *_, out_shape=None, **__) -> int:
    return 4 * dy_shape[0] * dy_shape[2] * dy_shape[3] * torch.Size(values_shape).numel()
