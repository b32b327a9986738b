# pyright: strict
"""Convolution by a sparse kernel, differentiable.

The kernels are chosen here; :class:`~gossamer.products.product.Product` does the rest.
"""

from torch import Tensor
from torch.nn import functional as F

from ..._errors import UsageError
from ...support import Support
from ..product import Product, kernels
from . import native, reference
from .reference import Geometry

KERNELS = kernels(native.KERNELS, reference)
FORWARD, BACKWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = KERNELS


def _check(x: Tensor, s: Support, g: Geometry | None) -> None:
    assert g is not None
    channels = s.shape[1] // (g.kernel[0] * g.kernel[1])
    if x.dim() != 4 or x.shape[1] != channels:
        raise UsageError("csr_conv2d", f"the input must be (batch, {channels}, height, width)", got=tuple(x.shape))
    if min(x.shape[2:]) < 1 or min(g.out(*x.shape[2:])) < 1:
        what = f"the padded image must be at least as large as the kernel {g.kernel}, dilated"
        raise UsageError("csr_conv2d", what, got=tuple(x.shape))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry | None) -> Tensor:
    assert g is not None
    return F.conv2d(x, weight.view(weight.shape[0], -1, *g.kernel), bias, g.stride, g.padding, g.dilation)


PRODUCT = Product("csr_conv2d", KERNELS, _dense, _check)


def csr_conv2d(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
    """Convolution of ``x`` with the sparse kernel (s, values), plus bias.

    Args:
        x: (B, in, H, W), any floating dtype (computed in the dtype of ``values``, returned in the dtype of ``x``).
        values: (n,), or (n, h, w) for blocks of (h, w); float32 or float64 (bfloat16 on the native kernels, which
            compute in float32).
        s: the support over the matrix (out, in kh kw).
        g: kernel size, stride, padding, dilation.
        bias: (out,) or None.

    Returns: (B, out, H', W'), the batch innermost in memory.
    """
    return PRODUCT(x, values, s, g, bias)
