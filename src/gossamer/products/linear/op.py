# pyright: strict
"""y = x W^T + b for a sparse W, differentiable.

The kernels are chosen here; :class:`~gossamer.products.product.Product` does the rest.
"""

from torch import Tensor
from torch.nn import functional as F

from ..._errors import UsageError
from ...support import Support
from ..conv2d.reference import Geometry
from ..product import Product, kernels
from . import native, reference

KERNELS = kernels(native.KERNELS, reference)
FORWARD, BACKWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = KERNELS


def _check(x: Tensor, s: Support, g: Geometry | None) -> None:
    if x.size(1) != s.shape[1]:
        raise UsageError("csr_linear", f"the input must be (..., {s.shape[1]})", got=tuple(x.shape))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry | None) -> Tensor:
    return F.linear(x, weight, bias)


PRODUCT = Product("csr_linear", KERNELS, _dense, _check)


def csr_linear(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for the sparse matrix W = (s, values).

    Args:
        x: (..., cols), any floating dtype (computed in the dtype of ``values``, returned in the dtype of ``x``).
        values: (n,), or (n, h, w) for blocks of (h, w); float32 or float64 (bfloat16 on the native kernels, which
            compute in float32).
        s: the support, on the same device.
        bias: (rows,) or None.

    Returns: (..., rows), the batch innermost in memory.
    """
    if x.dim() == 2:
        return PRODUCT(x, values, s, None, bias)
    return PRODUCT(x.reshape(-1, x.shape[-1]), values, s, None, bias).view(*x.shape[:-1], s.shape[0])
