"""The name of the kernel that runs each product of a layer, for reports."""

from collections.abc import Sequence

from torch import Tensor

from ._backend.dispatch import choose
from .layouts import Layout
from .products.conv2d import op as conv2d_op
from .products.conv2d.reference import Geometry
from .products.linear import op as linear_op
from .support import Support

PRODUCTS = ("forward", "input_gradient", "weight_gradient")


def kernel_names(
    values: Tensor, s: Support, layout: Layout, dense_above: float, shape: Sequence[int], g: Geometry | None
) -> dict[str, str]:
    """The kernel of each product; ``dense (simulated)`` under the masked layout. ``shape``: of the dense weight."""
    if layout.follows and s.density > dense_above:
        return dict.fromkeys(PRODUCTS, "dense")
    if layout.follows:
        return {**_sparse(values, s, shape, g), "weight_gradient": "dense"}
    if layout.storage == "dense":
        return dict.fromkeys(PRODUCTS, "dense (simulated)")
    return _sparse(values, s, shape, g)


def _sparse(values: Tensor, s: Support, shape: Sequence[int], g: Geometry | None) -> dict[str, str]:
    """The kernels that would be chosen for one sample; for a convolution, an image of the size of the kernel."""
    v = values.new_empty(s.n, *(() if s.block == (1, 1) else s.block))
    if g is None:
        x, dy = v.new_empty(1, s.shape[1]), v.new_empty(1, s.shape[0])
        chosen = (
            choose(linear_op.FORWARD, x, v, s),
            choose(linear_op.INPUT_GRADIENT, dy, v, s),
            choose(linear_op.WEIGHT_GRADIENT, dy, x, s),
        )
    else:
        high, wide = (d * (k - 1) + 1 for k, d in zip(g.kernel, g.dilation, strict=True))
        x, dy = v.new_empty(1, shape[1], high, wide), v.new_empty(1, s.shape[0], *g.out(high, wide))
        chosen = (
            choose(conv2d_op.FORWARD, x, v, s, g),
            choose(conv2d_op.INPUT_GRADIENT, dy, v, s, g, (high, wide)),
            choose(conv2d_op.WEIGHT_GRADIENT, dy, x, s, g),
        )
    return {product: kernel.name for product, kernel in zip(PRODUCTS, chosen, strict=True)}
