# pyright: strict
"""The batch-last memory format: the batch is the innermost dimension, the others keep their order.

Ordinary tensors of these shapes then have these strides:

    shape           in memory       strides
    (N, F)          (F, N)          (1, N)
    (N, C, L)       (C, L, N)       (1, L N, N)
    (N, C, H, W)    (C, H, W, N)    (1, H W N, W N, N)

Elementwise operations keep the strides. The stride of a dimension of size 1 does not matter, so a single image (N = 1)
is batch-last if it is contiguous.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .native import BEST, COMPUTED
from .private_torch import apply_directly


def is_batch_last(x: Tensor) -> bool:
    """Whether a tensor of at least two dimensions lies batch-last in memory, without gaps."""
    sizes, strides = x.shape, x.stride()
    if len(sizes) == 2 and strides == (1, sizes[0]):  # usual cases first: every call of a layer runs this
        return True
    if len(sizes) == 4 and strides == (1, sizes[2] * sizes[3] * sizes[0], sizes[3] * sizes[0], sizes[0]):
        return True
    if len(sizes) < 2:
        return False
    expected = 1
    for d in (0, *range(x.dim() - 1, 0, -1)):  # from the innermost dimension to the outermost
        if strides[d] != expected and sizes[d] != 1:
            return x.numel() == 0
        expected *= sizes[d]
    return True


def new_batch_last(x: Tensor, *shape: int) -> Tensor:
    """An uninitialised batch-last tensor (N, C) or (N, C, H, W), with the dtype and device of ``x``."""
    if len(shape) == 2:
        return x.new_empty_strided(shape, (1, shape[0]))
    n, _, h, w = shape
    return x.new_empty_strided(shape, (1, h * w * n, w * n, n))


def rows(x: Tensor) -> Tensor:
    """A view of a batch-last (N, C, ...) as a matrix (C, M), one row of M numbers per channel."""
    return x.movedim(0, -1).flatten(1)


def from_rows(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`rows`: a view of a contiguous (C, M) as a batch-last tensor of ``shape`` (N, C, ...)."""
    return matrix.view(*shape[1:], shape[0]).movedim(-1, 0)


# ---------------------------------------------------------------- conversions


def batch_last(x: Tensor) -> Tensor:
    """The tensor (N, ...) of at least two dimensions in batch-last format; ``x`` itself if it has this format.

    It uses torch's operations and is differentiable.
    """
    if is_batch_last(x):
        return x
    if x.is_contiguous():  # torch transposes matrices in blocks, other tensors one number at a time
        return x.flatten(1).t().contiguous().view(*x.shape[1:], x.shape[0]).movedim(-1, 0)
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def fast_batch_last(x: Tensor) -> Tensor:
    """:func:`batch_last` without autograd, by the native kernel if it can run."""
    if is_batch_last(x):
        return x
    if BEST is None or x.dim() not in (2, 4) or not x.is_cpu or x.dtype not in COMPUTED:
        return batch_last(x)
    if not x.is_contiguous():
        if not x.is_contiguous(memory_format=torch.channels_last):
            return batch_last(x)
        x = x.contiguous()  # two fast conversions take less time than the slow one between these two formats
    y = new_batch_last(x, *x.shape)
    BEST.turn(x, y, torch.get_num_threads())
    return y


class _BatchLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return fast_batch_last(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]  # its format does not matter


_with_gradient = apply_directly(_BatchLast)


def differentiable_batch_last(x: Tensor) -> Tensor:
    """:func:`fast_batch_last`, differentiable any number of times. Call it only if torch does not follow the call."""
    if is_batch_last(x):
        return x
    return _with_gradient(x) if x.requires_grad else fast_batch_last(x)


def fast_contiguous(x: Tensor) -> Tensor:
    """The inverse of :func:`fast_batch_last`, without autograd: (N, C, ...) in torch's contiguous format."""
    if not is_batch_last(x):
        return x.contiguous()
    return fast_batch_last(x.movedim(0, -1).flatten(0, -2)).t().view(x.shape)
