# pyright: strict
"""Convolution by a sparse kernel and its gradients, by :func:`unfold` and the linear reference.

Any stride, padding and dilation. Only a part of the batch is unfolded at a time, so memory is bounded.

The kernel (out, in, kh, kw) is the matrix (out, in kh kw) = (rows, cols) of the support. FLOPs 2 B H' W' n for each of
the three products.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import fold, unfold

from ...support import Support
from ..linear import reference as linear

UNFOLDED_NUMBERS = 1 << 23  # size of the part that is unfolded at a time


class Geometry(NamedTuple):
    """The sizes of a convolution, each a pair (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        high, wide = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)
        return high, wide


def forward(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
    """(B, in, H, W), (n,) or (n, h, w), (out,) -> (B, out, H', W')."""
    high, wide = g.out(*x.shape[2:])
    y = x.new_empty(x.shape[0], s.shape[0], high, wide)
    for part, columns in unfolded(x, g):
        y[part] = linear.forward(columns, values, s).t().reshape(s.shape[0], -1, high, wide).transpose(0, 1)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def backward(dy: Tensor, x: Tensor, values: Tensor, s: Support, g: Geometry) -> tuple[Tensor, Tensor]:
    """Both gradients: of the input, (B, in, H, W), and of the values."""
    return input_gradient(dy, values, s, g, (x.shape[2], x.shape[3])), weight_gradient(dy, x, s, g)


def input_gradient(dy: Tensor, values: Tensor, s: Support, g: Geometry, size: tuple[int, int]) -> Tensor:
    """(B, out, H', W') -> (B, in, H, W), (H, W) = size."""
    channels, positions = s.shape[1] // (g.kernel[0] * g.kernel[1]), dy.shape[2] * dy.shape[3]
    dx = dy.new_empty(dy.shape[0], channels, *size)
    for part in _parts(dy.shape[0], s.shape[1] * positions):
        columns = linear.input_gradient(flat_outputs(dy[part]), values, s).t().reshape(s.shape[1], -1, positions)
        dx[part] = fold(columns.transpose(0, 1), size, g.kernel, g.dilation, g.padding, g.stride)
    return dx


def weight_gradient(dy: Tensor, x: Tensor, s: Support, g: Geometry) -> Tensor:
    """(B, out, H', W'), (B, in, H, W) -> (n,) or (n, h, w)."""
    return sampled(dy, x, s.crow, s.col, s.shape, s.block, g)


def sampled(
    dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], block: tuple[int, int], g: Geometry
) -> Tensor:
    """The gradient of the kernel at the blocks of any CSR index: (m,) or (m, h, w)."""
    size = (col.shape[0],) if block == (1, 1) else (col.shape[0], *block)
    out = x.new_zeros(size)
    for part, columns in unfolded(x, g):
        out += linear.sampled(flat_outputs(dy[part]), columns, crow, col, shape, block)
    return out


def unfolded(x: Tensor, g: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the batch, and their patches as rows (B H' W', in kh kw)."""
    high, wide = g.out(*x.shape[2:])
    features = x.shape[1] * g.kernel[0] * g.kernel[1]
    for part in _parts(x.shape[0], features * high * wide):
        columns = unfold(x[part], g.kernel, g.dilation, g.padding, g.stride)  # (b, in kh kw, H' W')
        yield part, columns.transpose(0, 1).reshape(features, -1).t()


def flat_outputs(dy: Tensor) -> Tensor:
    """(B, out, H', W') -> (B H' W', out), the order of :func:`unfolded`."""
    return dy.transpose(0, 1).reshape(dy.shape[1], -1).t()


def _parts(batch: int, numbers_each: int) -> Iterator[slice]:
    step = max(1, UNFOLDED_NUMBERS // max(1, numbers_each))
    return (slice(start, start + step) for start in range(0, batch, step))
