# pyright: strict
"""The fast counterparts of :mod:`.reference`.

``sampled`` is the weight-gradient kernel at other coordinates. ``strongest`` computes slabs of rows of the dense
gradient with torch's dense kernel, because a sparse kernel is slower if it computes all entries.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight  # pyright: ignore[reportUnknownVariableType]

from ..._backend.dispatch import Kernel
from ..._backend.native import BEST, Build, why_not
from ...support import INT, Support, grid_of
from ..conv2d import native as conv2d
from ..conv2d.reference import Geometry
from ..linear import native as linear
from . import reference


def kernels(m: Build, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def sampled(
        dy: Tensor, x: Tensor, ids: Tensor, shape: tuple[int, int], block: tuple[int, int], g: Geometry | None = None
    ) -> Tensor:
        grid = grid_of(shape, block)
        crow = torch.searchsorted(ids, torch.arange(grid[0] + 1) * grid[1]).to(INT)
        col = (ids % grid[1]).to(INT)
        if g is not None:
            return conv2d.sampled(m, dy, x, crow, col, block, g)
        return linear.sampled(m, dy.reshape(-1, shape[0]), x.reshape(-1, shape[1]), crow, col, block)

    def strongest(*args: Any) -> tuple[Tensor, Tensor]:
        return reference.strongest(*args, rows_of=dense_rows)

    return {
        "sampled": Kernel(name, sampled, _reasons_against),
        "strongest": Kernel(name, strongest, _reasons_against_all),
    }


def dense_rows(operands: Sequence[tuple[Tensor, Tensor]], rows: slice, s: Support, g: Geometry | None) -> Tensor:
    """Some rows of the dense gradient by torch's dense kernels, (rows, cols)."""
    if g is None:
        return reference.dense_rows(operands, rows, s, g)
    size = (len(range(*rows.indices(s.shape[0]))), operands[0][1].shape[1], *g.kernel)
    shape: Any = (g.stride, g.padding, g.dilation)  # Any: torch's annotation allows only single numbers
    parts = (conv2d_weight(x, size, dy[:, rows].contiguous(), *shape) for dy, x in operands)
    return functools.reduce(torch.add, parts).flatten(1)


def _reasons_against_all(operands: Sequence[tuple[Tensor, Tensor]], *_: Any) -> list[str]:
    return why_not(*operands[0])


def _reasons_against(dy: Tensor, x: Tensor, *_: Any) -> list[str]:
    return why_not(dy, x)


KERNELS = kernels(cast(Build, BEST))  # if BEST is None, their reasons_against is never empty
