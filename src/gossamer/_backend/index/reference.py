# pyright: strict
"""Indices by torch's own operations.

Shapes: w (rows, cols); crow (rows + 1,), col (n,); ccol (cols + 1,), row and perm (n,), all int32.
"""

import torch
from torch import Tensor

INT = torch.int32


def rows_of(w: Tensor) -> tuple[Tensor, Tensor]:
    """(crow, col) of the non-zeros of a matrix."""
    i, j = w.nonzero(as_tuple=True)
    return pointers(i, w.shape[0]), j.to(INT)


def columns_of(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ccol, row, perm): the same entries in column order. Entry k is entry perm[k] in row order."""
    perm = torch.sort(col, stable=True)[1]
    rows = torch.repeat_interleave(
        torch.arange(crow.numel() - 1, dtype=INT, device=crow.device), crow.diff(), output_size=col.numel()
    )
    return pointers(col, cols), rows[perm], perm.to(INT)


def values_at(w: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The entries of a matrix at an index, (n,)."""
    rows = torch.repeat_interleave(
        torch.arange(crow.numel() - 1, device=crow.device), crow.diff(), output_size=col.numel()
    )
    return w.reshape(-1)[rows * w.shape[1] + col]


def pointers(index: Tensor, size: int) -> Tensor:
    """The begin of each of ``size`` groups, and the end, (size + 1,), from the group of every entry."""
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(INT)
