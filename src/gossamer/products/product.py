# pyright: strict
"""A differentiable product with a sparse matrix W = (s, values), for the linear layer and the convolution.

    y = W x      dx = W^T dy      dW[i, j] = sum dy_i x_j      2 n FLOPs each for every sample and pixel

The implementation depends on the context of the call:

    a plain training step                     an ``autograd.Function`` around the chosen kernels
    torch.compile, dispatch modes             the operators gossamer::<name>, <name>_dx, <name>_dw, <name>_backward,
                                              with fake kernels, autograd and FLOP formulas
    torch.func, derivatives of derivatives    a :class:`~gossamer.products.trilinear.Trilinear` of these operators
    torch.export, torch.jit.trace, ONNX       torch's own dense operation

Shapes: x and dx (B, in, ...), y and dy (B, out, ...), values and dW (n,) or (n, h, w). The dots are empty for a linear
layer, whose geometry g is None, and height and width for a convolution. An operator takes a support as five tensors and
four sizes, and a geometry as its eight numbers, or an empty list.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula  # pyright: ignore[reportUnknownVariableType]

from .._backend.dispatch import (
    Kernel,
    forced_kernel,
    full_precision,
    is_differentiated_again,
    is_traced,
    is_transformed,
    needs_torch_operations,
    run_as,
)
from .._backend.memory import differentiable_batch_last, fast_batch_last, new_batch_last
from .._backend.native import BEST, COMPUTED
from .._backend.private_torch import apply_directly
from .._errors import UsageError
from ..support import Support
from .conv2d.reference import Geometry
from .trilinear import Trilinear, as_dense, check_index

Gradients = tuple[Tensor | None, Tensor | None]
Dense = Callable[[Tensor, Tensor, Tensor | None, Geometry | None], Tensor]  # (x, W, bias, g) -> y by torch


class Kernels(NamedTuple):
    """The kernels of a product's four operations, fastest first."""

    forward: list[Kernel]
    backward: list[Kernel]
    input_gradient: list[Kernel]
    weight_gradient: list[Kernel]


def kernels(native: dict[str, Kernel], reference: Any) -> Kernels:
    """The native kernels, followed by the functions with the same names in the module ``reference``."""
    names = Kernels._fields
    return Kernels(*([native[name], Kernel("reference", getattr(reference, name), full_precision)] for name in names))


class Product:
    """One product.

    Args:
        name: name of the operators, also in messages.
        kernels: the kernels. They take (x, values, s, bias) or (x, values, s, g, bias), likewise in the backward pass.
        dense: the same product by torch, (x, W, bias, g) -> y.
        check: (x, s, g); raises UsageError if the input has a wrong shape.
    """

    def __init__(
        self, name: str, kernels: Kernels, dense: Dense, check: Callable[[Tensor, Support, Geometry | None], None]
    ):
        self.name, self.kernels, self.dense, self.check = name, kernels, dense, check
        self.operators = _register(self)

    def __call__(
        self, x: Tensor, values: Tensor, s: Support, g: Geometry | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """(B, in, ...) -> (B, out, ...), batch-last, in the dtype of ``x``; computed in the dtype of ``values``.

        Differentiable.
        """
        if not x.is_floating_point():
            raise UsageError(self.name, "the input must be of a floating dtype", got=x.dtype)
        if is_traced(x, values, bias):
            return self._traced(x, values, s, g, bias)
        self.check(x, s, g)
        if not torch.is_grad_enabled():
            return self.forward(x, values, s, g, bias)
        return _apply(differentiable_batch_last(x), values, bias, (self, s, g))

    def forward(
        self, x: Tensor, values: Tensor, s: Support, g: Geometry | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The same product by the chosen kernel, without autograd."""
        if bias is not None and bias.dtype is not values.dtype:
            bias = bias.to(values.dtype)
        operands = (x, values, s, bias) if g is None else (x, values, s, g, bias)
        y: Tensor = run_as(self.kernels.forward, values.dtype, *operands)
        return fast_batch_last(y if y.dtype is x.dtype else y.to(x.dtype))

    def gradients(
        self, dy: Tensor, x: Tensor | None, values: Tensor, s: Support, g: Geometry | None,
        size: Sequence[int] = (), of_x: bool = True, of_w: bool = True,
    ) -> Gradients:  # fmt: skip
        """dx (batch-last, dtype of ``dy``) and dW (dtype of ``values``) by the chosen kernels; None if not requested.

        Args:
            x: the input; it may be None if only dx is requested.
            size: () or (H, W) of the input.
        """
        dtype, where, dx, dw = values.dtype, (s,) if g is None else (s, g), None, None
        if x is not None and x.dtype is not dy.dtype:
            x = x.to(dy.dtype)
        if of_x and of_w:
            dx, dw = run_as(self.kernels.backward, dtype, dy, x, values, *where)
        elif of_x:
            dx = run_as(self.kernels.input_gradient, dtype, dy, values, *where, *([tuple(size)] if g else ()))
        elif of_w:
            dw = run_as(self.kernels.weight_gradient, dtype, dy, x, *where)
        if dx is not None:
            dx = fast_batch_last(dx if dx.dtype is dy.dtype else dx.to(dy.dtype))
        return dx, dw if dw is None or dw.dtype is dtype else dw.to(dtype)

    def trilinear(self, s: Support, g: Geometry | None, dtype: torch.dtype, size: Sequence[int]) -> Trilinear:
        """The product as a form of (dy, x, values), for values of this dtype and inputs of this size, () or (H, W)."""
        index, op = _index(s, g), self.operators

        def y(x: Tensor, values: Tensor) -> Tensor:
            return op.y(x, values, *index)

        def dx(dy: Tensor, values: Tensor) -> Tensor:
            return op.dx(dy, values, *index, size)

        def dw(dy: Tensor, x: Tensor) -> Tensor:
            like = dy.new_empty((), dtype=dtype).expand(s.n, *(() if s.block == (1, 1) else s.block))
            return op.dw(dy, x, like, *index)

        return Trilinear((y, dx, dw))

    def _traced(self, x: Tensor, values: Tensor, s: Support, g: Geometry | None, bias: Tensor | None) -> Tensor:
        """The product by operations that torch can follow."""
        if needs_torch_operations():
            return self.dense(x.to(values.dtype), as_dense(values, s), bias, g).to(x.dtype)
        self.check(x, s, g)
        if is_transformed():
            check_index(self.name, s.crow, s.col)
            y = self.trilinear(s, g, values.dtype, x.shape[2:]).slope(0, x, values)
        else:
            y = self.operators.y(x, values, *_index(s, g))
        return y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2))


class _Eager(torch.autograd.Function):  # few arguments and one attribute: each costs time at every step
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, of: "_Of") -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.of = of, None if bias is None else bias.dtype
        product, s, g = of
        return product.forward(x, values, s, g, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dy,), (x, values), ((product, s, g), bias) = grads, ctx.saved_tensors, ctx.of
        of_x, of_w, of_b, _ = ctx.needs_input_grad
        size = x.shape[2:] if g else ()
        if is_differentiated_again(dy):
            dx, dw = product.trilinear(s, g, values.dtype, size).gradients(0, x, values, dy, (of_x, of_w))
            return dx, dw, channel_sums(dy).to(bias) if of_b else None, None
        dx, dw = product.gradients(dy, x, values, s, g, size, of_x, of_w)
        return dx, dw, bias_gradient(dy, bias) if of_b else None, None


_Of = tuple[Product, Support, Geometry | None]
_apply = apply_directly(_Eager)


def channel_sums(dy: Tensor) -> Tensor:
    """The sum over all dimensions but the second, (B, C, ...) -> (C,), differentiable."""
    return dy.sum([0, *range(2, dy.dim())])


def bias_gradient(dy: Tensor, dtype: torch.dtype) -> Tensor:
    """:func:`channel_sums` in another dtype, by the native kernel if it can run."""
    if BEST is None or forced_kernel() == "reference" or not dy.is_cpu or dy.dtype not in COMPUTED:
        return channel_sums(dy).to(dtype)
    sums = dy.new_empty(dy.shape[1], dtype=COMPUTED[dy.dtype])
    BEST.row_sums(fast_batch_last(dy), sums, torch.get_num_threads())
    return sums if sums.dtype is dtype else sums.to(dtype)


# ---------------------------------------------------------------- the operators

INDEX = (
    "Tensor crow, Tensor col, Tensor ccol, Tensor row, Tensor perm, "
    "SymInt rows, SymInt cols, SymInt h, SymInt w, SymInt[] geometry"
)


class Operators(NamedTuple):
    """``torch.ops.gossamer.<name>`` and the three of its gradients."""

    y: Any  # Any: operators of torch have no static signature
    dx: Any
    dw: Any
    backward: Any


def _index(s: Support, g: Geometry | None) -> tuple[Any, ...]:
    return s.crow, s.col, s.ccol, s.row, s.perm, *s.shape, *s.block, [v for pair in g or () for v in pair]


def _support(index: Sequence[Any]) -> tuple[Support, Geometry | None]:
    """The inverse of :func:`_index`."""
    *tensors, rows, cols, h, w, flat = index
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    return Support((rows, cols), (h, w), *tensors), Geometry(*pairs) if pairs else None


def _register(product: Product) -> Operators:
    """Registers the operators of a product in torch: schemas, kernels, fake kernels, autograd, FLOP formulas."""

    def define(suffix: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        op: Any = torch.library.custom_op(f"gossamer::{product.name}{suffix}", run, mutates_args=(), schema=schema)
        op.register_fake(fake)
        return op

    def y(x: Tensor, values: Tensor, *index: Any) -> Tensor:
        return product.forward(x, values, *_support(index))

    def fake_y(x: Tensor, values: Tensor, *index: Any) -> Tensor:
        s, g = _support(index)
        return new_batch_last(x, x.shape[0], s.shape[0], *(g.out(*x.shape[2:]) if g else ()))

    def dx(dy: Tensor, values: Tensor, *index: Any) -> Any:
        s, g = _support(index[:-1])
        return product.gradients(dy, None, values, s, g, index[-1], of_w=False)[0]

    def fake_dx(dy: Tensor, values: Tensor, *index: Any) -> Tensor:
        s, g = _support(index[:-1])
        return new_batch_last(dy, dy.shape[0], s.shape[1] // math.prod(g.kernel if g else ()), *index[-1])

    def dw(dy: Tensor, x: Tensor, values: Tensor, *index: Any) -> Any:
        found = product.gradients(dy, x, values, *_support(index), of_x=False)[1]
        return found if found is None else found.contiguous()

    def fake_dw(dy: Tensor, x: Tensor, values: Tensor, *index: Any) -> Tensor:
        return torch.empty_like(values, memory_format=torch.contiguous_format)

    def both(dy: Tensor, x: Tensor, values: Tensor, *index: Any) -> Any:
        return product.gradients(dy, x, values, *_support(index), x.shape[2:])

    def fake_both(dy: Tensor, x: Tensor, values: Tensor, *index: Any) -> tuple[Tensor, Tensor]:
        return new_batch_last(dy, *x.shape), fake_dw(dy, x, values)

    define("_dx", f"(Tensor dy, Tensor values, {INDEX}, SymInt[] size) -> Tensor", dx, fake_dx)
    define("_dw", f"(Tensor dy, Tensor x, Tensor values, {INDEX}) -> Tensor", dw, fake_dw)
    define("_backward", f"(Tensor dy, Tensor x, Tensor values, {INDEX}) -> (Tensor, Tensor)", both, fake_both)
    forward = define("", f"(Tensor x, Tensor values, {INDEX}) -> Tensor", y, fake_y)
    packets = [getattr(torch.ops.gossamer, product.name + suffix) for suffix in ("", "_dx", "_dw", "_backward")]
    operators = Operators(*(packet.default for packet in packets))
    forward.register_autograd(_backward_of(operators), setup_context=_save)
    _register_flops(*packets)
    return operators


def _save(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    x, values, *index = inputs
    ctx.sizes = index[5:]
    ctx.save_for_backward(x, values, *index[:5])


def _backward_of(op: Operators) -> Callable[[Any, Tensor], Any]:
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, values, *tensors = ctx.saved_tensors
        index = (*tensors, *ctx.sizes)
        of_x, of_w = ctx.needs_input_grad[:2]
        dx = dw = None
        if of_x and of_w:
            dx, dw = op.backward(dy, x, values, *index)
        elif of_x:
            dx = op.dx(dy, values, *index, x.shape[2:])
        elif of_w:
            dw = op.dw(dy, x, values, *index)
        return dx, dw, *[None] * len(index)

    return backward


def _register_flops(y: Any, dx: Any, dw: Any, both: Any) -> None:
    """Two FLOPs for each value, sample and pixel of the output; the backward pass as a whole takes four."""

    def register(op: Any, flops_each: int, values: int, of_output: bool = False) -> None:
        def flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
            batch, _channels, *pixels = out_shape if of_output else shapes[0]
            return flops_each * batch * math.prod(pixels) * math.prod(shapes[values])

        register_flop_formula(op)(flops)

    register(y, 2, values=1, of_output=True)
    register(dx, 2, values=1)
    register(dw, 2, values=2)
    register(both, 4, values=2)
