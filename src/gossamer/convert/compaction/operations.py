# pyright: strict
"""The operations of torch that compact supports: element by element, pooling, sums and products, flattening."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from .values import Kind, Value

Function = Callable[..., Any]  # Any: torch's operations have different signatures

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Tanh,
    nn.Softplus, nn.Softsign, nn.Threshold,
)  # fmt: skip
UNCHANGED: tuple[type[nn.Module], ...] = (  # in eval mode
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
NORMS: dict[type[nn.Module], Kind] = {nn.BatchNorm2d: "image", nn.BatchNorm1d: "vector"}

ELEMENTWISE: frozenset[Function] = frozenset({
    F.relu, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.softplus, F.softsign, F.logsigmoid, F.sigmoid, F.tanh,
    torch.sigmoid, torch.tanh, torch.abs, torch.neg, torch.square, torch.clamp, operator.neg, operator.pos,
})  # fmt: skip
ELEMENTWISE_METHODS = frozenset({"relu", "sigmoid", "tanh", "abs", "neg", "square", "clamp"})
UNCHANGING: frozenset[object] = frozenset({F.dropout, F.dropout2d, "contiguous", "clone"})
ARITHMETIC: frozenset[Function] = frozenset({
    operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul,
})  # fmt: skip
ARITHMETIC_METHODS = frozenset({"add", "sub", "mul"})
POOLING: frozenset[Function] = frozenset({
    F.max_pool2d, F.avg_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d,
})  # fmt: skip


def apply(function: Function, constant: Tensor, *rest: object, **options: object) -> Tensor:
    """An element-by-element function of constants. NaN stays NaN, also for functions such as a threshold."""
    with torch.no_grad():
        result: Tensor = function(constant.clone(), *rest, **options)
    return torch.where(constant.isnan(), torch.nan, result)


def is_elementwise(node: Node) -> bool:
    """Whether a call works element by element on its first operand, and all other operands are numbers."""
    if any(isinstance(v, Node) for v in (*node.args[1:], *node.kwargs.values())):
        return False
    named = node.op == "call_method" and str(node.target).removesuffix("_") in ELEMENTWISE_METHODS
    return named or node.target in ELEMENTWISE


def function_of(node: Node) -> Function:
    """The function or tensor method of a call."""
    return getattr(Tensor, node.target) if isinstance(node.target, str) else node.target


def is_arithmetic(node: Node) -> bool:
    """Whether a call is a sum, difference or product of two tensors, or of a tensor and a number."""
    named = node.op == "call_method" and str(node.target).removesuffix("_") in ARITHMETIC_METHODS
    two = len(node.args) == 2 and not node.kwargs and all(isinstance(a, Node | int | float) for a in node.args)
    return two and (named or node.target in ARITHMETIC)


def is_unchanging(node: Node) -> bool:
    """Whether a call returns its operand without changes: a dropout that follows the mode, or a copy."""
    return node.target in UNCHANGING and not node.kwargs.get("training", False)


def is_pooling(node: Node) -> bool:
    """Whether a call pools each channel of an image."""
    return node.target in POOLING and not node.kwargs.get("return_indices", False)


def pools_constants(node: Node) -> bool:
    """Whether a pooling call returns a non-zero constant unchanged. An average with more options than a stride may
    not."""
    return node.target is not F.avg_pool2d or (len(node.args) <= 3 and set(node.kwargs) <= {"kernel_size", "stride"})


def keeps_constants(pool: nn.Module) -> bool:
    """Whether a pooling module returns a non-zero constant unchanged. An average that includes the zeros of a padding
    does not."""
    if not isinstance(pool, nn.AvgPool2d):
        return True
    padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding,)
    return pool.divisor_override is None and (max(padding) == 0 or not pool.count_include_pad)


def zeros_only(constant: Tensor) -> Tensor:
    """The constants that are zero; NaN in place of all others."""
    return torch.where(constant == 0, constant, torch.nan)


def writes(node: Node) -> bool:
    """Whether a call may write to its first operand: by its name, by ``inplace``, or as ``x += y`` (``x + y`` in a
    trace)."""
    named = node.op == "call_method" and str(node.target).endswith("_")
    return named or node.target is torch.relu_ or bool(node.kwargs.get("inplace")) or node.target in ARITHMETIC


def flattens(node: Node) -> bool:
    """Whether a call turns (N, C, H, W) into (N, C H W): ``flatten(x, 1)``, or ``x.view(x.size(0), -1)``."""
    args, options = list(node.args[1:]), dict(node.kwargs)
    if node.target in (torch.flatten, "flatten"):
        start, end = [*args, options.get("start_dim", 0)][0], [*args[1:], options.get("end_dim", -1)][0]
        return (start, end) == (1, -1)
    if node.target not in ("view", "reshape") or options or len(args) != 2 or args[1] != -1:
        return False
    return isinstance(args[0], Node) and _batch_size(args[0]) is node.args[0]


def averages_pixels(node: Node) -> Kind | None:
    """The kind of the result if a call is the mean of an image over its pixels, ``x.mean((2, 3))``; else None."""
    if node.target not in (torch.mean, "mean"):
        return None
    args, options = list(node.args[1:]), dict(node.kwargs)
    dims = args.pop(0) if args else options.pop("dim", None)
    keep = args.pop(0) if args else options.pop("keepdim", False)
    if args or options or not isinstance(dims, list | tuple) or set(dims) not in ({2, 3}, {-1, -2}):
        return None
    return "image" if keep else "vector"


def asks_for_sizes(node: Node) -> bool:
    """Whether a node reads a property of a tensor that does not depend on its channels: ``x.size(0)``, ``x.dtype``."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return bool(node.args[1] == 0)
    if node.target is getattr and node.args[1] in ("dtype", "device", "ndim"):
        return True
    shape = (node.op == "call_method" and node.target == "size") or (node.target is getattr and node.args[1] == "shape")
    return shape and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def same_channels(a: Value, b: Value) -> bool:
    """Whether a sum of two tensors adds equal channels."""
    return (a.kind, a.space.size, a.spread) == (b.kind, b.space.size, b.spread)


def _batch_size(node: Node) -> object:
    """The tensor x if the node is its first size, ``x.size(0)``; else None."""
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        return node.args[0]
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], Node):
        return None
    shape = node.args[0]
    asked = (shape.target is getattr and shape.args[1] == "shape") or (shape.target == "size" and len(shape.args) == 1)
    return shape.args[0] if asked else None
