"""Kernels of the index broken on purpose."""

import torch

from gossamer import laws
from gossamer._backend.dispatch import Kernel, always
from gossamer._backend.index import reference as index_reference


def _index(**changed):
    """The law on reference kernels, some of them exchanged, for a matrix with an empty row and column, -0.0 and NaN."""
    good = {k: getattr(index_reference, k) for k in ("rows_of", "columns_of", "values_at")}
    w = torch.tensor(
        [[0.0, 2.0, -0.0, 3.0, 0.0], [0.0] * 5, [4.0, 5.0, 0.0, float("nan"), 0.0], [0.0, 6.0, 0.0, 7.0, 0.0]]
    )
    kernels = {k: Kernel("mutant", changed.get(k, run), always) for k, run in good.items()}
    return lambda: laws.check_index(kernels, w)


def _by_bits(w):
    """Takes -0.0 for a non-zero."""
    return index_reference.rows_of(w.view(torch.int32))


def _in_any_order(crow, col, cols):
    """Rows fall within a column."""
    perm = torch.sort(col.flip(0), stable=True)[1]
    perm = col.numel() - 1 - perm
    ccol, row, right = index_reference.columns_of(crow, col, cols)
    return ccol, row[torch.argsort(right)][perm], perm.to(right.dtype)


def _inverse(crow, col, cols):
    """The places in column order, asked for by row order."""
    ccol, row, perm = index_reference.columns_of(crow, col, cols)
    return ccol, row, torch.argsort(perm).to(perm.dtype)


INDEX = {
    "-0.0 is a non-zero": _index(rows_of=_by_bits),
    "NaN is a zero": _index(rows_of=lambda w: index_reference.rows_of(w.nan_to_num(0.0))),
    "a long index": _index(rows_of=lambda w: tuple(t.long() for t in index_reference.rows_of(w))),
    "pointers one row late": _index(
        rows_of=lambda w: (index_reference.rows_of(w)[0].roll(1), index_reference.rows_of(w)[1])
    ),
    "the order within a column is lost": _index(columns_of=_in_any_order),
    "perm is its inverse": _index(columns_of=_inverse),
    "one column short": _index(
        columns_of=lambda crow, col, cols: (
            index_reference.columns_of(crow, col, cols)[0][:-1],
            *index_reference.columns_of(crow, col, cols)[1:],
        )
    ),
    "values of the transpose": _index(values_at=lambda w, crow, col: index_reference.values_at(w.abs() + 1, crow, col)),
    "values in another dtype": _index(values_at=lambda w, crow, col: index_reference.values_at(w, crow, col).double()),
}
