"""The torch operators ``gossamer::csr_conv2d`` and its two gradients: fake kernels, autograd, FLOP formulas; the kernel is chosen here."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ...errors import Unfit
from ...support import Support
from ..kernels import Kernel, full_precision, run
from . import reference
from .reference import Geometry

FORWARD = [Kernel("reference", reference.forward, full_precision)]
INPUT_GRADIENT = [Kernel("reference", reference.input_gradient, full_precision)]
WEIGHT_GRADIENT = [Kernel("reference", reference.weight_gradient, full_precision)]


def csr_conv2d(x: Tensor, values: Tensor, s: Support, g: Geometry) -> Tensor:
    """Convolution of ``x`` with the sparse kernel (s, values).

    Args:
        x: (B, in, H, W), any floating dtype (computed in the dtype of ``values``, returned in that of ``x``).
        values: (n,), or (n, h, w) for units of (h, w); float32 or float64.
        s: the support over the matrix (out, in kh kw).
        g: kernel size, stride, padding, dilation.

    Returns: (B, out, H', W').
    """
    channels = s.shape[1] // (g.kernel[0] * g.kernel[1])
    if x.dim() != 4 or x.shape[1] != channels:
        raise Unfit("csr_conv2d", f"the input must be (batch, {channels}, height, width)", got=tuple(x.shape))
    if not x.is_floating_point():
        raise Unfit("csr_conv2d", "the input must be of a floating dtype", got=x.dtype)
    flat = [v for pair in g for v in pair]
    return _forward(x, values, s.crow, s.col, s.ccol, s.row, s.perm, *s.shape, *s.unit, flat)


def _geometry(flat: Sequence[int]) -> Geometry:
    return Geometry((flat[0], flat[1]), (flat[2], flat[3]), (flat[4], flat[5]), (flat[6], flat[7]))


@torch.library.custom_op("gossamer::csr_conv2d", mutates_args=())
def _forward(
    x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    s, g, x32 = Support((rows, cols), (h, w), crow, col, ccol, row, perm), _geometry(geometry), x.to(values.dtype)
    return run(FORWARD, x32, values, s, g).to(x.dtype)


@torch.library.custom_op("gossamer::csr_conv2d_dx", mutates_args=())
def _dx(
    dy: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int], height: int, width: int,
) -> Tensor:  # fmt: skip
    s, g, dy32 = Support((rows, cols), (h, w), crow, col, ccol, row, perm), _geometry(geometry), dy.to(values.dtype)
    size = (height, width)
    return run(INPUT_GRADIENT, dy32, values, s, g, size).to(dy.dtype)


@torch.library.custom_op("gossamer::csr_conv2d_dw", mutates_args=())
def _dw(
    dy: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, ccol: Tensor, row: Tensor, perm: Tensor,
    rows: int, cols: int, h: int, w: int, geometry: Sequence[int],
) -> Tensor:  # fmt: skip
    s, g = Support((rows, cols), (h, w), crow, col, ccol, row, perm), _geometry(geometry)
    dy, x = dy.to(values.dtype), x.to(values.dtype)
    return run(WEIGHT_GRADIENT, dy, x, s, g)


@_forward.register_fake
def _(x, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry):
    return x.new_empty(x.shape[0], rows, *_geometry(geometry).out(*x.shape[2:]))


@_dx.register_fake
def _(dy, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry, height, width):
    kernel = _geometry(geometry).kernel
    return dy.new_empty(dy.shape[0], cols // (kernel[0] * kernel[1]), height, width)


@_dw.register_fake
def _(dy, x, values, crow, col, ccol, row, perm, rows, cols, h, w, geometry):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    x, values, *index = inputs
    ctx.sizes = index[5:]
    ctx.save_for_backward(x, values, *index[:5])


def _backward(ctx, dy):
    x, values, *index = ctx.saved_tensors
    needs_x, needs_w = ctx.needs_input_grad[:2]
    dx = _dx(dy, values, *index, *ctx.sizes, *x.shape[2:]) if needs_x else None
    dw = _dw(dy, x, values, *index, *ctx.sizes) if needs_w else None
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
