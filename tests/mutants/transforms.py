"""Products that are wrong under a transform of torch."""

from collections.abc import Callable
from typing import Any

import torch

from cases import SUPPORTS
from gossamer import CSR, laws
from gossamer._backend import dispatch as kernels_of
from gossamer.layouts import Layout
from gossamer.products.linear import op as linear_op


def _opaque(x, values, s, bias=None):
    """A product that drops tangents."""
    eager = kernels_of.in_forward_mode() and not _in_func()
    return CSR.linear(*(torch.autograd.forward_ad.unpack_dual(t)[0] if eager else t for t in (x, values)), s, bias)


def _unrecorded(x, values, s, bias=None):
    """A kernel called under a tracer: its output is a constant."""
    return (
        linear_op.PRODUCT.forward(x, values, s, None, bias)
        if torch.jit.is_tracing()
        else CSR.linear(x, values, s, bias)
    )


class _Once(torch.autograd.Function):
    """A slope whose backward pass takes its operands for constants, or its samples for the first of them."""

    mapped = False

    @staticmethod
    def forward(x, values, s):
        return CSR.linear(x, values, s)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, values, ctx.s = inputs
        ctx.save_for_backward(x, values)

    @staticmethod
    def backward(ctx, dy):
        x, values = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            y = CSR.linear(x, values, ctx.s)
        return *torch.autograd.grad(y, (x, values), dy), None


def _differentiable_once(x, values, s, bias=None):
    y = (
        _Once.apply(x, values, s)
        if torch.is_grad_enabled() and not kernels_of.is_traced(x)
        else CSR.linear(x, values, s)
    )
    return y if bias is None else y + bias


def _under(condition: Callable[[], Any], change: Callable) -> Layout:
    """The real product, its operands changed while the condition holds."""
    return CSR._replace(
        linear=lambda x, v, s, b=None: CSR.linear(*(change(x, v, s, b) if condition() else (x, v, s, b)))
    )


def _in_func() -> bool:
    return kernels_of.in_func_transform()


def _fails(*_):
    raise RuntimeError("not implemented")


TRANSFORM = {
    name: (lambda layout=layout: laws.check_transforms(layout, SUPPORTS["primes"]))
    for name, layout in {
        "a product that drops tangents": CSR._replace(linear=_opaque),
        "a kernel under a tracer": CSR._replace(linear=_unrecorded),
        "operands are constants of the second derivative": CSR._replace(linear=_differentiable_once),
        "the tangent of the values is forgotten": _under(_in_func, lambda x, v, s, b: (x, v.detach(), s, b)),
        "the bias is forgotten": _under(_in_func, lambda x, v, s, b: (x, v, s, None)),
        "a trace of the example's batch": _under(torch.jit.is_tracing, lambda x, v, s, b: (x[:3], v, s, b)),
        "values are constants of a trace": _under(
            torch.jit.is_tracing, lambda x, v, s, b: (x, v.detach().clone(), s, b)
        ),
        "an error that says nothing": _under(_in_func, _fails),
    }.items()
}
