"""The law of products under the transforms of torch: torch.func, forward mode, double backward, tracing."""

# torch leaves torch.func, forward_ad and torch.jit without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from .._errors import UsageError
from ..layouts import Layout, scatter
from ..products.conv2d.reference import Geometry
from ..support import Support
from .details import close, demand
from .operands import bias_of, hard_supports, operands, poisoned_memory

Function = Callable[..., Tensor]  # (x, stored, bias) -> y


def check_transforms(layout: Layout, s: Support | None = None, g: Geometry | None = None) -> list[str]:
    """Under each of :data:`TRANSFORMS` a layout gives the results of the dense product, or raises UsageError.

    Args:
        layout: the layout.
        s: the support; None tests several difficult supports.
        g: geometry of the convolution; None is a linear layer.

    Returns: the names of the transforms that were refused.
    Raises: AssertionError.
    """
    if s is None:
        return sorted({name for case in hard_supports() for name in check_transforms(layout, *case)})
    x, _, values = operands(s, g, 3, (5, 6))
    stored = layout.stored(values, s, torch.Size(s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel)))
    bias, refused = bias_of(s, x.dtype), []
    for name, transform in TRANSFORMS.items():
        where = f"layout {layout.name!r} on {s.shape} in blocks of {s.block}, n={s.n}, under {name}"
        try:
            with warnings.catch_warnings(), poisoned_memory():
                warnings.simplefilter("ignore", DeprecationWarning)  # newer versions of torch advise against torch.jit
                # A tracer warns that a check of shapes becomes a constant, which is correct here.
                warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
                expected = _flat(transform(_dense(layout, s, g), x, stored, bias))
                got = _flat(transform(_own(layout, s, g), x, stored, bias))
        except UsageError:
            refused.append(name)
            continue
        except RuntimeError as error:
            raise AssertionError(f"{where}: must return numbers or raise UsageError, not {error!r}") from error
        demand(len(got) == len(expected), f"{where}: {len(got)} results, must be {len(expected)}")
        for a, b in zip(got, expected, strict=True):
            demand(a.shape == b.shape, f"{where}: shape {tuple(a.shape)}, must be {tuple(b.shape)}")
            close(a, b, f"{where}: must be the dense product's")
    return refused


def _own(layout: Layout, s: Support, g: Geometry | None) -> Function:
    return lambda x, w, b: layout.linear(x, w, s, b) if g is None else layout.conv2d(x, w, s, g, b)


def _dense(layout: Layout, s: Support, g: Geometry | None) -> Function:
    """The same product by torch's operations."""

    def product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        dense = w.reshape(s.shape) if layout.follows else scatter(layout.compact(w, s), s)
        if g is None:
            return F.linear(x, dense, b)
        return F.conv2d(x, dense.view(s.shape[0], -1, *g.kernel), b, g.stride, g.padding, g.dilation)

    return product


def _flat(results: Any) -> list[Tensor]:
    """All tensors of a nested result. None, which torch returns for a missing tangent, counts as one number."""
    if results is None:
        return [torch.zeros(())]
    return [results] if isinstance(results, Tensor) else [t for r in results for t in _flat(r)]


# -------------------------------------------------------------------- the transforms: (f, x, stored, bias) -> tensors


def _loss(f: Function) -> Function:
    return lambda *a: f(*a).sin().sum()


def _tangents(*a: Tensor) -> tuple[Tensor, ...]:
    return tuple((3 * t + 1).cos() for t in a)


def _leaves(*a: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_() for t in a)


def _squares(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()


def _per_sample(f: Function, *a: Tensor) -> Any:
    return func.vmap(func.grad(lambda x, w, b: _loss(f)(x[None], w, b), (1, 2)), (0, None, None))(*a)


def _ensemble(f: Function, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return func.vmap(f, (None, 1, 0), 1)(x, torch.stack([w, 2 * w], 1), torch.stack([b, -b]))


def _dual_numbers(f: Function, *a: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(*(forward_ad.make_dual(t, d) for t, d in zip(a, _tangents(*a), strict=True))))


def _dual_numbers_without_grad(f: Function, *a: Tensor) -> Any:
    with torch.no_grad():
        return _dual_numbers(f, *a)


def _dual_numbers_through_backward(f: Function, *a: Tensor) -> Any:
    leaves = _leaves(*a)
    with forward_ad.dual_level():
        grads = torch.autograd.grad(
            _loss(f)(*(forward_ad.make_dual(t, d) for t, d in zip(leaves, _tangents(*a), strict=True))), leaves
        )
        return [forward_ad.unpack_dual(t).tangent for t in grads]


def _double_backward(f: Function, *a: Tensor) -> Any:
    leaves = _leaves(*a)
    grads = torch.autograd.grad(_loss(f)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(_squares(grads), leaves)


def _triple_backward(f: Function, *a: Tensor) -> Any:
    leaves = _leaves(*a)
    grads = torch.autograd.grad(_loss(f)(*leaves), leaves, create_graph=True)
    grads = torch.autograd.grad(_squares(grads), leaves, create_graph=True)
    return torch.autograd.grad(_squares(grads), leaves)


def _batched_gradients(f: Function, *a: Tensor) -> Any:
    leaves = _leaves(*a)
    y = f(*leaves)
    return torch.autograd.grad(y, leaves, torch.stack([y.detach(), y.detach().sin()]), is_grads_batched=True)


def _trace(f: Function, x: Tensor, w: Tensor, b: Tensor) -> Any:
    """The trace of f, called with other numbers and a larger batch, with its backward pass."""
    traced: Any = torch.jit.trace(f, (x, w, b), check_trace=False)
    leaves = _leaves(torch.cat([x, -x]), 2 * w, -b)
    y = traced(*leaves)
    return y, torch.autograd.grad(y.sin().sum(), leaves)


def _trace_without_grad(f: Function, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        traced: Any = torch.jit.trace(f, (x, w, b), check_trace=False)
        return traced(torch.cat([x, -x]), 2 * w, -b)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, *a: func.grad(_loss(f), (0, 1, 2))(*a),
    "vjp": lambda f, *a: func.vjp(f, *a)[1](f(*a).sin()),
    "jvp": lambda f, *a: func.jvp(f, a, _tangents(*a)),
    "jacfwd": lambda f, *a: func.jacfwd(f, (1, 2))(*a),
    "jacrev": lambda f, *a: func.jacrev(f, (1, 2))(*a),
    "hessian": lambda f, *a: func.hessian(_loss(f), 2)(*a),
    "jvp of grad": lambda f, *a: func.jvp(func.grad(_loss(f), (0, 1, 2)), a, _tangents(*a)),
    "grad of jvp": lambda f, *a: func.grad(lambda *t: func.jvp(f, t, _tangents(*a))[1].sin().sum(), (0, 1, 2))(*a),
    "jvp of jvp": lambda f, *a: func.jvp(lambda *t: func.jvp(f, t, _tangents(*a))[1], a, _tangents(*a)),
    "vmap": lambda f, *a: func.vmap(f, (1, None, None))(torch.stack([a[0], a[0].sin()], 1), *a[1:]),
    "vmap over values": _ensemble,
    "gradients of each sample": _per_sample,
    "functionalize": lambda f, *a: func.functionalize(f)(*a),
    "jvp of functionalize": lambda f, *a: func.jvp(func.functionalize(f), a, _tangents(*a)),
    "dual numbers": _dual_numbers,
    "dual numbers without grad": _dual_numbers_without_grad,
    "dual numbers through a backward pass": _dual_numbers_through_backward,
    "double backward": _double_backward,
    "triple backward": _triple_backward,
    "batched gradients": _batched_gradients,
    "torch.jit.trace": _trace,
    "torch.jit.trace without grad": _trace_without_grad,
    "make_fx": lambda f, *a: make_fx(f)(*a)(*_tangents(*a)),
    "make_fx of grad": lambda f, *a: make_fx(func.grad(_loss(f), (0, 1, 2)))(*a)(*_tangents(*a)),
}
