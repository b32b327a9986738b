# pyright: strict
"""Indices, with the choice of the kernel. There is no autograd, because positions have no gradient.

``GOSSAMER_BACKEND`` forces a kernel of the products. Here only the value ``reference`` has an effect: an index is made
long before the first product, so a value without a fitting kernel must not fail here. The reference also runs if torch
follows the call.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..dispatch import Kernel, always, forced_kernel, is_traced
from . import native, reference

ROWS_OF = [native.KERNELS["rows_of"], Kernel("reference", reference.rows_of, always)]
COLUMNS_OF = [native.KERNELS["columns_of"], Kernel("reference", reference.columns_of, always)]
VALUES_AT = [native.KERNELS["values_at"], Kernel("reference", reference.values_at, always)]


def rows_of(w: Tensor) -> tuple[Tensor, Tensor]:
    """(crow (rows + 1,), col (n,)), int32, of the non-zeros of a matrix (rows, cols)."""
    return _run(ROWS_OF, w)


def columns_of(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ccol (cols + 1,), row (n,), perm (n,)), int32: an index in column order, and the positions in row order."""
    return _run(COLUMNS_OF, crow, col, cols)


def values_at(w: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The entries of a matrix (rows, cols) at an index, (n,)."""
    return _run(VALUES_AT, w, crow, col)


def _run(kernels: Sequence[Kernel], *args: Any) -> Any:
    if forced_kernel() == "reference" or is_traced(args[0]):
        kernels = kernels[-1:]
    return next(k for k in kernels if not k.reasons_against(*args)).run(*args)
