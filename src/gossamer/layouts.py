"""Layouts: how the pair (support, values) is stored and multiplied. A layout is only a record of functions.

    name     stored                                        multiplied by
    masked   a dense parameter with exact zeros            torch's dense kernels: it simulates sparsity
    shadow   a dense parameter, the support its non-zeros  sparse kernels; the weight gradient is dense, zeros included
    csr      a compact parameter (n,) or (n, h, w)         sparse kernels, O(n)

The optimizer does not depend on the layout: it gets a parameter and a gradient of the same shape. ``scatter`` turns
values into a dense tensor; ``gather`` is its exact inverse. ``carry`` converts a stored tensor to another support.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._backend.index.op import values_at
from ._errors import check_choice
from .products.conv2d.op import csr_conv2d
from .products.conv2d.reference import Geometry
from .products.dense_gradient import for_dense, shadow_conv2d, shadow_linear
from .products.linear.op import csr_linear
from .support import Support

DENSE_ABOVE = {"linear": 0.25, "conv2d": 0.5}  # above these densities a shadow layer uses torch's dense kernels


class Layout(NamedTuple):
    """``storage``: the parameter has the dense weight's shape, or the compact shape (n,), or (n, h, w) for tiles."""

    name: str
    storage: Literal["dense", "compact"]
    linear: Callable[..., Tensor]  # (x, values, s, bias=None): (..., cols) -> (..., rows)
    conv2d: Callable[..., Tensor]  # (x, values, s, geometry, bias=None): (B, in, H, W) -> (B, out, H', W')
    follows: bool = False  # the support is where the values are not zero; their gradient is dense

    def stored(self, compact: Tensor, s: Support, shape: torch.Size) -> Tensor:
        """Compact values as the layout stores them: of the dense ``shape``, or compact."""
        return scatter(compact, s).view(shape) if self.storage == "dense" else compact

    def compact(self, stored: Tensor, s: Support) -> Tensor:
        """The values on the support, (n,) or (n, h, w), of a parameter, a gradient or an entry of optimizer state."""
        return gather(stored, s) if self.storage == "dense" else stored


def gather(dense: Tensor, s: Support) -> Tensor:
    """The values of a dense tensor on the support, (rows, cols) or (out, in, kh, kw) -> (n,) or (n, h, w). Where a
    tile reaches beyond the edge, they are 0."""
    at, where = s.scalars()
    if at is None:
        return dense.reshape(-1)[where]
    values = dense.new_zeros(s.n * s.block[0] * s.block[1])
    return values.index_put((at,), dense.reshape(-1)[where]).view(s.n, *s.block)


def scatter(values: Tensor, s: Support) -> Tensor:
    """The dense matrix (rows, cols) that holds the values on the support and exact zeros elsewhere. Differentiable."""
    at, where = s.scalars()
    flat = values.reshape(-1) if at is None else values.reshape(-1)[at]
    return values.new_zeros(s.shape[0] * s.shape[1]).index_put((where,), flat).view(s.shape)


def carry(stored: Tensor, layout: Layout, new: Support, came_from: Tensor, fill: Tensor | None = None) -> Tensor:
    """``stored`` (a parameter, or an entry of its optimizer state) on another support.

    Args:
        came_from: position of each block of ``new`` in the old support; -1 for newborn blocks; (n_new,) int64.
        fill: content of newborn blocks, first dimension 1. If None, or not of the shape of a block, they are zero.
    """
    newborn = came_from < 0
    if layout.storage == "dense":
        compact = gather(stored, new)
    elif stored.shape[0]:
        compact = stored[came_from.clamp(min=0)]
    else:
        compact = stored.new_zeros(new.n, *stored.shape[1:])
    fits = fill is not None and fill.shape[1:] == compact.shape[1:]
    compact[newborn] = fill.to(compact.dtype) if fill is not None and fits else 0
    return scatter(compact, new).view(stored.shape) if layout.storage == "dense" else compact


def write_(parameter: Tensor, data: Tensor) -> None:
    """Gives a parameter other data: in place where the shape stays, so that data_ptr() does too.

    While a graph of an earlier step is alive (a loop that still holds its last loss), autograd remembers the old shape
    in the parameter's gradient accumulator. It forgets it only when the dtype changes: so the dtype changes in between.
    """
    if data.shape == parameter.shape:
        parameter.copy_(data)
        return
    dtype = parameter.dtype
    other = torch.float32 if dtype != torch.float32 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = data.to(dtype)


def _masked_weight(values: Tensor, s: Support) -> Tensor:
    return scatter(gather(values, s), s).view(values.shape)  # its gradient reaches the parameter on the support only


def _masked_linear(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, _masked_weight(values, s), bias)


def _masked_conv2d(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, _masked_weight(values, s), bias, g.stride, g.padding, g.dilation)


def _non_zeros(values: Tensor, s: Support) -> Tensor:
    return values_at(values.detach().flatten(1), s.crow, s.col) if s.block == (1, 1) else gather(values.detach(), s)


def _shadow_linear(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    if s.density > DENSE_ABOVE["linear"]:
        return F.linear(x, values, bias)
    return shadow_linear(x, values, _non_zeros(values, s), s, bias)


def _shadow_conv2d(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
    if s.density > DENSE_ABOVE["conv2d"]:
        return F.conv2d(for_dense(x), for_dense(values), bias, g.stride, g.padding, g.dilation)
    return shadow_conv2d(x, values, _non_zeros(values, s), s, g, bias)


MASKED = Layout("masked", "dense", _masked_linear, _masked_conv2d)
SHADOW = Layout("shadow", "dense", _shadow_linear, _shadow_conv2d, follows=True)
CSR = Layout("csr", "compact", csr_linear, csr_conv2d)
LAYOUTS = {layout.name: layout for layout in (MASKED, SHADOW, CSR)}


def layout_named(name: str | Layout, who: str) -> Layout:
    """The layout of that name, or :class:`UsageError` with the nearest name."""
    if isinstance(name, Layout):
        return name
    check_choice(who, "layout", name, LAYOUTS)
    return LAYOUTS[name]
