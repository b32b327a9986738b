"""Indices, the kernel chosen here. No autograd: positions have no gradient. Of ``GOSSAMER_BACKEND``, which speaks of products, they obey
``reference`` only: an index is made long before a product is asked for. Where somebody follows the call, the reference runs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..dispatch import Kernel, always, asked, foreign
from . import native, reference

ROWS_OF, COLUMNS_OF, VALUES_AT = (
    [native.KERNELS[name], Kernel("reference", getattr(reference, name), always)]
    for name in ("rows_of", "columns_of", "values_at")
)


def rows_of(w: Tensor) -> tuple[Tensor, Tensor]:
    """(crow (rows + 1,), col (n,)), int32, of the non-zeros of a matrix (rows, cols)."""
    return _run(ROWS_OF, w)


def columns_of(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ccol (cols + 1,), row (n,), perm (n,)), int32: the entries of an index in column order, and their places in row order."""
    return _run(COLUMNS_OF, crow, col, cols)


def values_at(w: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The entries of a matrix (rows, cols) at an index, (n,)."""
    return _run(VALUES_AT, w, crow, col)


def _run(kernels: Sequence[Kernel], *args: Any) -> Any:
    plain = asked() == "reference" or foreign(args[0])
    return next(k for k in kernels if not (plain and k.name != "reference") and not k.reasons_against(*args)).run(*args)
