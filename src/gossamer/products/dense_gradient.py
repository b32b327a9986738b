"""Products whose weight has many zeros but whose weight gradient is wanted everywhere: sparse forward, sparse input gradient, dense dW.

    y  = x W^T + b      by the sparse kernels, from the non-zeros of W           2 B n flops
    dx = dy W           the same                                                  2 B n
    dW = dy^T x         by torch's dense kernel, of the dense size                2 B N

What training by a proximal or mirror step needs: every zero must be able to come back. The dense weight is at hand: whoever follows the
call (``torch.func``, a tracer, a FLOP counter) or differentiates twice gets torch's own dense operations. Compiled code calls these
functions between two graphs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .._backend.dispatch import followed, foreign
from .._backend.native import bias_gradient, plain
from ..support import Support
from .conv2d import op as conv2d
from .conv2d.reference import Geometry
from .linear import op as linear


def shadow_linear(x: Tensor, dense: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, (..., cols) -> (..., rows).

    Args:
        dense: W, (rows, cols): takes the gradient; read only where the call is followed or differentiated twice.
        values: its non-zeros, (n,), detached.
        s: where they are.
    """
    if torch.compiler.is_exporting():
        return F.linear(_as(x, dense), dense, bias).to(x.dtype)
    return _shadow_linear(x, dense, values, s, bias)


@torch.compiler.disable()
def _shadow_linear(x: Tensor, dense: Tensor, values: Tensor, s: Support, bias: Tensor | None) -> Tensor:
    if foreign(x, dense, bias):
        return F.linear(_as(x, dense), dense, bias).to(x.dtype)
    flat = x if x.dim() == 2 else x.reshape(-1, s.shape[1])
    y = _Linear.apply(flat, dense, values, bias, s)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], s.shape[0])


def shadow_conv2d(
    x: Tensor, dense: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None
) -> Tensor:
    """Convolution, (B, in, H, W) -> (B, out, H', W'); ``dense`` is the kernel (out, in, kh, kw). Otherwise as :func:`shadow_linear`."""
    if torch.compiler.is_exporting():
        return F.conv2d(_as(x, dense), dense, bias, g.stride, g.padding, g.dilation).to(x.dtype)
    return _shadow_conv2d(x, dense, values, s, g, bias)


@torch.compiler.disable()
def _shadow_conv2d(x: Tensor, dense: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None) -> Tensor:
    if foreign(x, dense, bias):
        return F.conv2d(_as(x, dense), dense, bias, g.stride, g.padding, g.dilation).to(x.dtype)
    return _Conv2d.apply(x, dense, values, bias, s, g)  # type: ignore[return-value]


def for_dense(t: Tensor) -> Tensor:
    """In the memory format in which torch's dense convolutions are fastest: on the CPU channels last, by a third to a half."""
    return _ForDense.apply(t) if t.is_cpu and not foreign(t) else t  # type: ignore[return-value]


class _ForDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return _for_dense(t)

    @staticmethod
    def backward(ctx, dy):
        return dy  # the order in memory is not seen by arithmetic


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dense, values, bias, s):
        ctx.save_for_backward(x, dense, values)
        ctx.support, ctx.bias = s, None if bias is None else bias.dtype
        return linear.product(x, values, s, bias)

    @staticmethod
    def backward(ctx, dy):
        x, dense, values = ctx.saved_tensors
        of_x, of_w, _, of_b, _ = ctx.needs_input_grad
        if followed(dy):
            dx = (_as(dy, dense) @ dense).to(dy.dtype) if of_x else None
            return (
                dx,
                _as(dy, dense).t() @ _as(x, dense) if of_w else None,
                None,
                dy.sum(0).to(ctx.bias) if of_b else None,
                None,
            )
        dx, _ = linear.gradients(dy, x, values, ctx.support, of_x, False)
        dw = _as(dy, values).t() @ _as(x, values) if of_w else None
        return dx, dw, None, bias_gradient(dy, ctx.bias) if of_b else None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dense, values, bias, s, g):
        ctx.save_for_backward(x, dense, values)
        ctx.support, ctx.geometry, ctx.bias = s, g, None if bias is None else bias.dtype
        return conv2d.product(x, values, s, g, bias)

    @staticmethod
    def backward(ctx, dy):
        x, dense, values = ctx.saved_tensors
        of_x, of_w, _, of_b, *_ = ctx.needs_input_grad
        g, dw = ctx.geometry, None
        if followed(dy):
            where = (g.stride, g.padding, g.dilation, False, (0, 0), 1, (of_x, of_w, False))
            dx, dw, _ = torch.ops.aten.convolution_backward(_as(dy, dense), _as(x, dense), dense, None, *where)
            db = dy.sum((0, 2, 3)).to(ctx.bias) if of_b else None
            return dx.to(dy.dtype) if of_x else None, dw if of_w else None, None, db, None, None
        dx, _ = conv2d.gradients(dy, None, values, ctx.support, g, x.shape[2:], of_x, False)
        if of_w:
            where: Any = (g.stride, g.padding, g.dilation)  # torch's annotation knows single numbers only
            dw = conv2d_weight(_for_dense(_as(x, values)), dense.shape, _for_dense(_as(dy, values)), *where)
        return dx, dw, None, bias_gradient(dy, ctx.bias) if of_b else None, None, None


def _for_dense(t: Tensor) -> Tensor:
    return plain(t).contiguous(memory_format=torch.channels_last) if t.is_cpu else t.contiguous()


def _as(t: Tensor, values: Tensor) -> Tensor:
    """In the dtype of the weights: a low-precision activation is widened before it is summed."""
    return t if t.dtype is values.dtype else t.to(values.dtype)
