"""The law of layouts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layouts import Layout, gather, scatter
from ..products.conv2d.reference import Geometry
from ..support import Support
from .details import close, demand
from .operands import hard_supports, operands, poisoned_memory


def check_layout(
    layout: Layout,
    s: Support | None = None,
    g: Geometry | None = None,
    *,
    batch: int = 5,
    size: tuple[int, int] = (7, 6),
) -> None:
    """A layout stores values without loss, and gives the products of the dense weight, forward and backward.

    It reads no entry off the support, and its gradient there is 0. A layout whose support follows its values has the
    full gradient instead.

    Args:
        layout: the layout.
        s: the support; None tests several difficult supports.
        g: geometry of the convolution; None is a linear layer.
        batch: batch size of the inputs.
        size: height and width of the inputs of a convolution.

    Raises: AssertionError.
    """
    if s is None:
        for case, geometry in hard_supports():
            check_layout(layout, case, geometry, batch=batch, size=size)
        return
    where = f"layout {layout.name!r} on {s.shape} in blocks of {s.block}, n={s.n}" + (f", {g}" if g else "")
    demand(layout.storage in ("dense", "compact"), f"{where}: storage must be 'dense' or 'compact'")
    x, dy, values = operands(s, g, batch, size)
    shape = torch.Size(s.shape if g is None else (s.shape[0], x.shape[1], *g.kernel))
    stored = layout.stored(values, s, shape)
    demand(layout.storage == "compact" or stored.shape == shape, f"{where}: dense storage must have the weight's shape")
    demand(torch.equal(layout.compact(stored, s), values), f"{where}: compact(stored(values)) must be the values")
    if layout.storage == "dense" and not layout.follows:
        kept = scatter(torch.ones_like(values), s).view(shape) > 0
        stored = torch.where(kept, stored, 7.0)  # an entry off the support that is read changes the result
    _check_product(layout, s, g, (x, dy, values), stored.requires_grad_(), where)


def _check_product(
    layout: Layout, s: Support, g: Geometry | None, given: tuple[Tensor, Tensor, Tensor], stored: Tensor, where: str
) -> None:
    """Compares output and both gradients with those of the dense layer."""
    (x, dy, values), x2 = given, given[0].detach().clone().requires_grad_()
    dense = scatter(values, s).requires_grad_()
    if g is None:
        expected = F.linear(x2, dense)
    else:
        kernel = dense.view(s.shape[0], x.shape[1], *g.kernel)
        expected = F.conv2d(x2, kernel, None, g.stride, g.padding, g.dilation)
    dx2, dense_grad = torch.autograd.grad(expected, (x2, dense), dy)
    x.requires_grad_()
    with poisoned_memory():
        y = layout.linear(x, stored, s) if g is None else layout.conv2d(x, stored, s, g)
        demand(y.shape == expected.shape, f"{where}: output of shape {tuple(y.shape)}, must be {tuple(expected.shape)}")
        close(y, expected, f"{where}: the output must be the dense layer's")
        dx, dw = torch.autograd.grad(y, (x, stored), dy)
    close(dx, dx2, f"{where}: the input's gradient must be the dense layer's")
    demand(dw.shape == stored.shape, f"{where}: the gradient must have the parameter's shape")
    on = f"{where}: the gradient on the support must be the dense weight's, there"
    close(layout.compact(dw, s), gather(dense_grad, s), on)
    if layout.follows:
        everywhere = f"{where}: the gradient must be the dense weight's, on the support and off it"
        close(dw.reshape(s.shape), dense_grad, everywhere)
    elif layout.storage == "dense":
        demand(bool((dw.view(s.shape)[~s.mask()] == 0).all()), f"{where}: the gradient must be 0 off the support")
