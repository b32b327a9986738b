"""The law of the kernels that make and read an index."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .._backend.dispatch import Kernel
from ..support import INT
from .details import demand
from .operands import poisoned_memory


def check_index(kernels: Mapping[str, Kernel], w: Tensor) -> None:
    """``rows_of``, ``columns_of`` and ``values_at`` find the non-zeros of a matrix. -0.0 is zero, NaN is not.

    ``rows_of`` gives strictly increasing columns in each row; ``columns_of`` gives the same entries column by column,
    with increasing rows; ``values_at`` gives the entries.

    Args:
        kernels: the three kernels by name.
        w: the matrix.

    Raises: AssertionError.
    """
    where = f"of {tuple(w.shape)} with {int(w.count_nonzero())} non-zeros"
    with poisoned_memory():
        crow, col = kernels["rows_of"].run(w)
    spots = [(i, j) for i in range(w.shape[0]) for j in range(w.shape[1]) if float(w[i, j]) != 0.0]
    above = [sum(row < i for row, _ in spots) for i in range(w.shape[0] + 1)]
    demand(crow.tolist() == above, f"crow {where} must count the non-zeros of the rows above")
    demand(col.tolist() == [j for _, j in spots], f"col {where} must be the columns, row by row")
    with poisoned_memory():
        values = kernels["values_at"].run(w, crow, col)
        ccol, row, perm = kernels["columns_of"].run(crow, col, w.shape[1])
    demand(all(t.dtype is INT for t in (crow, col, ccol, row, perm)), f"an index {where} must be int32")
    order = sorted(range(len(spots)), key=lambda k: (spots[k][1], spots[k][0]))
    before = [sum(j < c for _, j in spots) for c in range(w.shape[1] + 1)]
    demand(ccol.tolist() == before, f"ccol {where} must count the non-zeros of the columns before")
    demand(row.tolist() == [spots[k][0] for k in order], f"row {where} must be the rows, column by column")
    demand(perm.tolist() == order, f"perm {where} must give the places in row order")
    expected = torch.tensor([float(w[spot]) for spot in spots], dtype=w.dtype)
    equal = values.dtype is w.dtype and torch.equal(values.nan_to_num(7.0), expected.nan_to_num(7.0))
    demand(equal, f"values {where} must be the entries")
