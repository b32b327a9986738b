"""Sensing, the kernel chosen here. No autograd: a measured gradient is not differentiated."""

from ..kernels import Kernel, always
from . import native, reference
from .reference import top_k

SAMPLED = [native.KERNELS["sampled"], Kernel("reference", reference.sampled, always)]
STRONGEST = [native.KERNELS["strongest"], Kernel("reference", reference.strongest, always)]

__all__ = ["SAMPLED", "STRONGEST", "top_k"]
