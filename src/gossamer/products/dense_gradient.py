# pyright: strict
"""Products of a weight with many zeros, with the gradient of all its entries.

    y  = x W^T + b      by the sparse kernels, from the non-zeros of W           2 B n FLOPs
    dx = dy W           by the sparse kernels                                     2 B n
    dW = dy^T x         by torch's dense kernel, of the dense size                2 B N

Proximal and mirror steps need this gradient, because any zero can become non-zero again. The dense weight is available.
Torch's dense operations therefore run if torch follows the call (``torch.func``, a tracer, a FLOP counter), and in
second derivatives. Compiled code calls these functions between two graphs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight  # pyright: ignore[reportUnknownVariableType]

from .._backend.dispatch import is_differentiated_again, is_traced
from .._backend.memory import fast_contiguous
from .._backend.private_torch import apply_directly
from ..support import Support
from .conv2d.op import PRODUCT as CONV2D
from .conv2d.reference import Geometry
from .linear.op import PRODUCT as LINEAR
from .product import bias_gradient, channel_sums


def shadow_linear(x: Tensor, dense: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, (..., cols) -> (..., rows).

    Args:
        x: the input.
        dense: W, (rows, cols). It gets the gradient. It is read only if torch follows the call, or in a second
            derivative.
        values: the non-zeros of W, (n,), detached.
        s: the positions of the non-zeros.
        bias: (rows,) or None.
    """
    if torch.compiler.is_exporting():
        return _by_torch(x, dense, bias, None)
    flat = x if x.dim() == 2 else x.reshape(-1, s.shape[1])
    y = _product(flat, dense, values, s, None, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], s.shape[0])


def shadow_conv2d(
    x: Tensor, dense: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None
) -> Tensor:
    """Convolution, (B, in, H, W) -> (B, out, H', W'); ``dense`` is the kernel (out, in, kh, kw).

    Otherwise as :func:`shadow_linear`.
    """
    if torch.compiler.is_exporting():
        return _by_torch(x, dense, bias, g)
    return _product(x, dense, values, s, g, bias)


@torch.compiler.disable()  # pyright: ignore[reportUnknownMemberType, reportUntypedFunctionDecorator]
def _product(x: Tensor, dense: Tensor, values: Tensor, s: Support, g: Geometry | None, bias: Tensor | None) -> Tensor:
    if is_traced(x, dense, bias):
        return _by_torch(x, dense, bias, g)
    return _apply(x, dense, values, bias, (s, g))


def _by_torch(x: Tensor, dense: Tensor, bias: Tensor | None, g: Geometry | None) -> Tensor:
    wide = _as(x, dense)
    if g is None:
        return F.linear(wide, dense, bias).to(x.dtype)
    return F.conv2d(wide, dense, bias, g.stride, g.padding, g.dilation).to(x.dtype)


_Of = tuple[Support, Geometry | None]


class _DenseGradient(torch.autograd.Function):  # few arguments and one attribute: each costs time at every step
    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Tensor, values: Tensor, bias: Tensor | None, of: _Of) -> Tensor:
        ctx.save_for_backward(x, dense, values)
        ctx.of = of, None if bias is None else bias.dtype
        s, g = of
        return (LINEAR if g is None else CONV2D).forward(x, values, s, g, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dy,), (x, dense, values), ((s, g), bias) = grads, ctx.saved_tensors, ctx.of
        of_x, of_w, _, of_b, _ = ctx.needs_input_grad
        if is_differentiated_again(dy):
            dx, dw = _gradients_by_torch(_as(dy, dense), _as(x, dense), dense, g, of_x, of_w)
            db = channel_sums(dy).to(bias) if of_b else None
            return None if dx is None else dx.to(dy.dtype), dw, None, db, None
        dx = dw = None
        if of_x:
            product, size = (LINEAR, ()) if g is None else (CONV2D, x.shape[2:])
            dx, _ = product.gradients(dy, None, values, s, g, size, of_w=False)
        if of_w:
            dw = _weight_gradient(_as(dy, values), _as(x, values), dense, g)
        return dx, dw, None, bias_gradient(dy, bias) if of_b else None, None


_apply = apply_directly(_DenseGradient)


def _gradients_by_torch(
    dy: Tensor, x: Tensor, dense: Tensor, g: Geometry | None, of_x: bool, of_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients, differentiable."""
    if g is None:
        return dy @ dense if of_x else None, dy.t() @ x if of_w else None
    where = (g.stride, g.padding, g.dilation, False, (0, 0), 1, (of_x, of_w, False))
    dx, dw, _ = torch.ops.aten.convolution_backward(dy, x, dense, None, *where)
    return dx if of_x else None, dw if of_w else None


def _weight_gradient(dy: Tensor, x: Tensor, dense: Tensor, g: Geometry | None) -> Tensor:
    """dW of the dense size by torch's dense kernel."""
    if g is None:
        return dy.t() @ x
    where: Any = (g.stride, g.padding, g.dilation)  # Any: torch's annotation allows only single numbers
    return conv2d_weight(_for_dense(x), dense.shape, _for_dense(dy), *where)


# ---------------------------------------------------------------- the memory format of dense convolutions


def for_dense(t: Tensor) -> Tensor:
    """``t`` in the memory format in which torch's dense convolutions are fastest.

    On the CPU this is channels last, which takes a third to a half less time.
    """
    if not t.is_cpu or is_traced(t):
        return t
    return _apply_for_dense(t)


class _ForDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return _for_dense(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]  # the memory format does not change the numbers


_apply_for_dense = apply_directly(_ForDense)


def _for_dense(t: Tensor) -> Tensor:
    return fast_contiguous(t).contiguous(memory_format=torch.channels_last) if t.is_cpu else t.contiguous()


def _as(t: Tensor, values: Tensor) -> Tensor:
    """``t`` in the dtype of the weights: a low-precision activation is converted before it is summed."""
    return t if t.dtype is values.dtype else t.to(values.dtype)
