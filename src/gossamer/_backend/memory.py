"""The batch-last memory format: the batch innermost, the rest in order. What an ordinary tensor of any of these shapes then looks like:

    shape           in memory       strides
    (N, F)          (F, N)          (1, N)
    (N, C, L)       (C, L, N)       (1, L N, N)
    (N, C, H, W)    (C, H, W, N)    (1, H W N, W N, N)

Elementwise operations keep the strides. A dimension of size 1 has no stride that matters, so an image alone (N = 1) is batch-last whenever
it is contiguous.
"""

from collections.abc import Sequence

from torch import Tensor


def is_batch_last(x: Tensor) -> bool:
    """Whether a tensor of at least two dimensions lies batch-last in memory, without gaps."""
    sizes, strides = x.shape, x.stride()
    if len(sizes) == 2 and strides == (1, sizes[0]):  # the usual cases by a glance: a layer asks at every call
        return True
    if len(sizes) == 4 and strides == (1, sizes[2] * sizes[3] * sizes[0], sizes[3] * sizes[0], sizes[0]):
        return True
    if len(sizes) < 2:
        return False
    expected = 1
    for d in (0, *range(x.dim() - 1, 0, -1)):  # from the innermost out
        if strides[d] != expected and sizes[d] != 1:
            return x.numel() == 0
        expected *= sizes[d]
    return True


def batch_last(x: Tensor) -> Tensor:
    """The same tensor (N, ...), of at least two dimensions, batch-last in memory: itself if it is so already. Differentiable."""
    if is_batch_last(x):
        return x
    if x.is_contiguous():  # torch transposes matrices in blocks, other tensors one number at a time
        return x.flatten(1).t().contiguous().view(*x.shape[1:], x.shape[0]).movedim(-1, 0)
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def rows(x: Tensor) -> Tensor:
    """A batch-last (N, C, ...) as the matrix (C, M) that it is in memory, one row per channel, M numbers each: a view."""
    return x.movedim(0, -1).flatten(1)


def from_rows(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The batch-last tensor of this ``shape`` (N, C, ...) whose :func:`rows` are the contiguous ``matrix`` (C, M): a view."""
    return matrix.view(*shape[1:], shape[0]).movedim(-1, 0)
