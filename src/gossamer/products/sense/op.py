# pyright: strict
"""Sensing, with the choice of the kernel. There is no autograd: a measured gradient is not differentiated."""

from collections.abc import Sequence

from torch import Tensor

from ..._backend.dispatch import Kernel, always
from ...support import Support
from ..conv2d.reference import Geometry
from . import native, reference
from .reference import tie_key, tie_keys, top_k

SAMPLED = [native.KERNELS["sampled"], Kernel("reference", reference.sampled, always)]
STRONGEST = [native.KERNELS["strongest"], Kernel("reference", reference.strongest, always)]


def gradient_rows(operands: Sequence[tuple[Tensor, Tensor]], rows: slice, s: Support, g: Geometry | None) -> Tensor:
    """Some rows of the dense gradient, (rows, cols), summed over pairs (dy, x), by torch's dense kernel."""
    return native.dense_rows(operands, rows, s, g)


__all__ = ["SAMPLED", "STRONGEST", "gradient_rows", "tie_key", "tie_keys", "top_k"]
