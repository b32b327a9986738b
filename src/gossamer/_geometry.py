"""Turns the arguments of a convolution, as torch takes them, into a :class:`Geometry`."""

from collections.abc import Iterable
from typing import TypeAlias

from torch import nn

from ._errors import UsageError
from .products.conv2d.reference import Geometry

Sizes: TypeAlias = int | tuple[int, int]  # one number for both directions, or (vertical, horizontal)


def geometry_of(kernel_size: Sizes, stride: Sizes, padding: Sizes | str, dilation: Sizes) -> Geometry:
    """Kernel, stride, padding and dilation as pairs. Raises UsageError where a value is not valid."""
    kernel, strides, dilations = _pair(kernel_size), _pair(stride), _pair(dilation)
    g = Geometry(kernel, strides, _padding(padding, kernel, dilations, strides), dilations)
    if min(g.kernel + g.stride + g.dilation) < 1 or min(g.padding) < 0:
        what = "kernel, stride and dilation must be at least 1, padding at least 0"
        raise UsageError("SparseConv2d", what, got=tuple(g))
    return g


def module_geometry(m: nn.Conv2d) -> Geometry:
    """The geometry of a convolution of torch."""
    (kh, kw), (sh, sw), (dh, dw) = m.kernel_size, m.stride, m.dilation
    padding = m.padding if isinstance(m.padding, str) else (m.padding[0], m.padding[1])
    return geometry_of((kh, kw), (sh, sw), padding, (dh, dw))


def _pair(value: int | Iterable[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise UsageError("SparseConv2d", "sizes are one whole number, or a pair of whole numbers", got=value)
    return pair


def _padding(
    padding: Sizes | str, kernel: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if isinstance(padding, str):
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if padding != "same" or stride != (1, 1) or any(t % 2 for t in totals):
            what = "padding must be one or two numbers, 'valid', or 'same' with stride 1 and an even total padding"
            raise UsageError("SparseConv2d", what, got=padding)
        return totals[0] // 2, totals[1] // 2
    return _pair(padding)
