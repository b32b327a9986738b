# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""A matrix in memory. State: rows x cols numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._errors import UsageError
from ..arrays import Array, tensor
from .protocol import PRECISIONS, Operator


class Dense(Operator):
    """A matrix in memory.

    Args:
        matrix: (rows, cols), float32 or float64, a tensor or an array. It is not copied.

    Raises: UsageError for another number of dimensions or another dtype.
    """

    def __init__(self, matrix: Array):
        a = tensor("Dense", "the matrix", matrix)
        if a.dim() != 2 or a.dtype not in PRECISIONS:
            got = (tuple(a.shape), a.dtype)
            raise UsageError("Dense", "the matrix must have two dimensions and be float32 or float64", got=got)
        self.matrix = a.detach()
        self.shape, self.dtype, self.device = (a.shape[0], a.shape[1]), a.dtype, a.device

    def matvec(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.matrix.T @ r

    def columns(self, ids: Tensor) -> Tensor:
        return self.matrix[:, ids]

    def norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.matrix, dim=0)
