# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""The interface of a sensing matrix A (rows, cols), which need not be stored.

    matvec(x)       A x                        (cols,) -> (rows,)
    adjoint(r)      A^T r, block by block      (rows,) -> pairs (first column, values), columns in order
    columns(ids)    A_S, made explicitly       (k,) int64 -> (rows, k)
    norms()         Euclidean column norms     (cols,)

``adjoint`` yields at most ``BLOCK_NUMBERS`` numbers at a time. A solver that keeps the s best of them needs O(s +
block) memory in addition to the operator.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_NUMBERS = 1 << 21  # largest size of a block in a stream
PRECISIONS = (torch.float32, torch.float64)


class Operator(ABC):
    """A linear map of shape (rows, cols). A subclass defines ``matvec``, ``adjoint``, ``columns`` and ``norms``."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matvec(self, x: Tensor) -> Tensor:
        """A x: (cols,) -> (rows,)."""

    @abstractmethod
    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        """A^T r, one block of columns at a time, in order: (rows,) -> pairs (first column, (block,))."""

    @abstractmethod
    def columns(self, ids: Tensor) -> Tensor:
        """The columns of the given ids, in that order: (k,) int64 -> (rows, k)."""

    @abstractmethod
    def norms(self) -> Tensor:
        """Euclidean norms of all columns, (cols,)."""

    def rmatvec(self, r: Tensor) -> Tensor:
        """All of A^T r: (rows,) -> (cols,)."""
        return torch.cat([block for _, block in self.adjoint(r)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {str(self.dtype).removeprefix('torch.')})"


def column_norms(A: Operator, width: int) -> Tensor:
    """Norms of all columns (cols,), from :meth:`Operator.columns` of ``width`` ids at a time."""
    everything = torch.arange(A.shape[1], device=A.device)
    return torch.cat([torch.linalg.vector_norm(A.columns(ids), dim=0) for ids in torch.split(everything, width)])
