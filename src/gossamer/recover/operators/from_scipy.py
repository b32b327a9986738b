# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
"""SciPy's linear operators as :class:`Operator`. SciPy is imported at the first use."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..._errors import UsageError
from .protocol import BLOCK_NUMBERS, Operator, column_norms

Numbers = Any  # an array of NumPy: its type depends on the precision


class Products(Protocol):
    """The members of SciPy's ``LinearOperator`` that are used here; ``aslinearoperator`` accepts such objects."""

    shape: tuple[int, ...]
    dtype: Any  # NumPy's dtype; None if it is unknown

    def matvec(self, x: Numbers) -> Numbers:
        """A x."""
        ...

    def rmatvec(self, x: Numbers) -> Numbers:
        """A^T x."""
        ...


class FromSciPy(Operator):
    """A ``scipy.sparse.linalg.LinearOperator``, or an object that ``aslinearoperator`` accepts.

    Its products run on the CPU.

    Raises: UsageError for a complex operator, and for an operator without ``rmatvec``.
    """

    def __init__(self, linear: object):
        from scipy.sparse.linalg import aslinearoperator

        made: Any = aslinearoperator  # SciPy has no types
        self.linear: Any = made(linear)
        if np.issubdtype(self.linear.dtype or float, np.complexfloating):
            what = "A is complex; the solvers take real numbers only"
            raise UsageError("operator", what, remedy="use real and imaginary parts as separate rows and columns")
        self.shape, self.device = (self.linear.shape[0], self.linear.shape[1]), torch.device("cpu")
        self.dtype = torch.float32 if self.linear.dtype == np.float32 else torch.float64
        try:
            self.linear.rmatvec(np.zeros(self.shape[0], dtype=numpy_type(self.dtype)))
        except NotImplementedError:
            what = "A has no rmatvec, and solvers need A^T r"
            raise UsageError("operator", what, remedy="use LinearOperator(..., rmatvec=...)") from None

    def _from(self, array: Numbers) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=numpy_type(self.dtype)))  # a copy: SciPy may give a read-only one

    def matvec(self, x: Tensor) -> Tensor:
        return self._from(self.linear.matvec(x.numpy()))

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 0, self._from(self.linear.rmatvec(r.numpy()))

    def columns(self, ids: Tensor) -> Tensor:
        if not ids.numel():
            return torch.empty(self.shape[0], 0, dtype=self.dtype)
        unit = np.zeros((self.shape[1], ids.numel()), dtype=numpy_type(self.dtype))
        unit[ids.numpy(), np.arange(ids.numel())] = 1
        return self._from(self.linear.matmat(unit))

    def norms(self) -> Tensor:
        return column_norms(self, max(1, BLOCK_NUMBERS // sum(self.shape)))


def numpy_type(dtype: torch.dtype) -> Any:
    """NumPy's type of the same precision, float32 or float64."""
    return np.float32 if dtype == torch.float32 else np.float64
