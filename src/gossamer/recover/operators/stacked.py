# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""One operator on several right-hand sides. State: that of the operator.

Y = A W,  Y (n, k),  W (cols, k)      as one vector each, row by row: coefficient (c, o) has id c k + o
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._errors import check_count
from .conversion import Matrix, operator
from .protocol import Operator


class Stacked(Operator):
    """A on each of k right-hand sides: y (n k,) holds Y (n, k) row by row, x (cols k,) the coefficients (cols, k) row
    by row.

    Args:
        A: matrix or operator.
        k: number of right-hand sides.

    Raises: UsageError for k below 1, or if A is not an operator.
    """

    def __init__(self, A: Matrix, k: int):
        check_count("Stacked", "k", k, 1)
        self.A, self.k = operator(A, "Stacked"), k
        self.dtype, self.device = self.A.dtype, self.A.device
        self.shape = (self.A.shape[0] * k, self.A.shape[1] * k)

    def matvec(self, x: Tensor) -> Tensor:
        return torch.stack([self.A.matvec(column.contiguous()) for column in x.view(-1, self.k).T], 1).flatten()

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        streams = [self.A.adjoint(column.contiguous()) for column in r.view(-1, self.k).T]
        for parts in zip(*streams, strict=True):
            yield parts[0][0] * self.k, torch.stack([values for _, values in parts], 1).flatten()

    def columns(self, ids: Tensor) -> Tensor:
        found = torch.zeros(self.A.shape[0], self.k, ids.numel(), dtype=self.dtype, device=self.device)
        found[:, ids % self.k, torch.arange(ids.numel(), device=ids.device)] = self.A.columns(ids // self.k)
        return found.flatten(0, 1)

    def norms(self) -> Tensor:
        return self.A.norms().repeat_interleave(self.k)
