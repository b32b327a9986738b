"""Supports, operands and memory that the laws of kernels, layouts and transforms share."""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..layouts import gather
from ..products.conv2d.reference import Geometry
from ..support import Support


@contextmanager
def poisoned_memory() -> Generator[None, None, None]:
    """A context that fills new memory with NaN. Entries that a kernel does not write are then NaN."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def hard_supports() -> Iterator[tuple[Support, Geometry | None]]:
    """Pairs (support, geometry) of difficult cases. The geometry is None for a linear layer."""
    rng = torch.Generator().manual_seed(0)
    conv = Geometry((3, 2), (2, 1), (1, 2), (1, 2))
    yield Support.random((7, 11), 30, rng=rng), None
    yield Support.from_ids(torch.tensor([12, 14, 40]), (7, 11)), None  # empty rows and columns
    yield Support.from_ids(torch.empty(0, dtype=torch.int64), (3, 2)), None
    yield Support.full((3, 5)), None
    yield Support.random((7, 11), 5, (3, 4), rng), None  # blocks that extend beyond the edge
    yield Support.random((5, 18), 40, rng=rng), conv
    yield Support.random((5, 18), 7, (2, 4), rng), conv


def operands(
    s: Support, g: Geometry | None, batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, output gradient and values of a product.

    The input is (batch, in), or (batch, channels, *size) for a convolution. The values are at least float32; they are 0
    beyond the edge of the matrix.
    """
    rng = torch.Generator().manual_seed(1)
    dense = torch.randn(s.shape, generator=rng, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    if g is None:
        shapes = (batch, s.shape[1]), (batch, s.shape[0])
    else:
        channels = s.shape[1] // math.prod(g.kernel)
        shapes = (batch, channels, *size), (batch, s.shape[0], *g.out(*size))
    x, dy = (torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, dy, gather(dense, s)


def bias_of(s: Support, dtype: torch.dtype) -> Tensor:
    """A bias for the rows of a support."""
    return torch.randn(s.shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def some_zeros(s: Support) -> Tensor:
    """Ids of half of the blocks that are not kept."""
    return s.sample_outside((s.total - s.n + 1) // 2, torch.Generator().manual_seed(2))
