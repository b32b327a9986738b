# pyright: strict
"""The flow of gradients: sums of squares give the expected squared gradient at each coordinate."""

import math

from torch import Tensor
from torch.nn import functional as F

from ..conv2d.reference import Geometry


def sums_of_squares(dy: Tensor, x: Tensor, block: tuple[int, int], g: Geometry | None) -> tuple[Tensor, Tensor]:
    """Sums of squares: of the output gradient by block row, (grid_rows,), of the input by block column, (grid_cols,).

    Linear (g is None): (..., out), (..., in). Convolution: (B, out, H', W'), (B, in, H, W); every column of the kernel
    has the sum of its input channel.
    """
    channels, taps = (-1, 1) if g is None else (1, math.prod(g.kernel))

    def sums(t: Tensor, size: int, taps: int) -> Tensor:
        squares = t.square().transpose(channels, -1).flatten(0, -2).sum(0).repeat_interleave(taps)
        return F.pad(squares, (0, -squares.numel() % size)).view(-1, size).sum(1)

    return sums(dy, block[0], 1), sums(x, block[1], taps)
