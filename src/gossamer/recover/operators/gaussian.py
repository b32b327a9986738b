# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Independent N(0, 1/rows) entries, made from a seed, one block of columns at a time. State: the seed."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._errors import check_count
from ..arrays import unique
from ..gates import DRAWN, generator
from .protocol import Operator


class Gaussian(Operator):
    """Independent N(0, 1/rows) entries. They are made from the seed each time they are needed and never stored.

    Args:
        rows: number of rows.
        cols: number of columns.
        seed: determines every entry, on any device. Blocks of ``DRAWN`` columns are drawn on the CPU, each from its own
            random state.
        dtype: dtype of the products.
        device: device of the products.

    Raises: UsageError for sizes below 1.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ):
        check_count("Gaussian", "rows", rows, 1)
        check_count("Gaussian", "cols", cols, 1)
        self.shape, self.seed, self.dtype, self.device = (rows, cols), seed, dtype, torch.device(device)

    def _block(self, k: int) -> Tensor:
        """Columns [k DRAWN, (k + 1) DRAWN), (rows, at most DRAWN)."""
        width = min(DRAWN, self.shape[1] - k * DRAWN)
        drawn = torch.randn(width, self.shape[0], generator=generator(self.seed, k), dtype=torch.float64)
        return drawn.T.to(self.device, self.dtype) / self.shape[0] ** 0.5

    def matvec(self, x: Tensor) -> Tensor:
        y = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for k, part in enumerate(torch.split(x, DRAWN)):
            if bool(part.any()):  # a sparse x needs few blocks
                y += self._block(k) @ part
        return y

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        for k in range(-(-self.shape[1] // DRAWN)):
            yield k * DRAWN, self._block(k).T @ r

    def columns(self, ids: Tensor) -> Tensor:
        found = torch.empty(self.shape[0], ids.numel(), dtype=self.dtype, device=self.device)
        block = ids // DRAWN
        needed: list[int] = unique(block)[0].tolist()
        for k in needed:
            at = (block == k).nonzero().flatten()
            found[:, at] = self._block(k)[:, ids[at] - k * DRAWN]
        return found

    def norms(self) -> Tensor:
        return torch.cat([torch.linalg.vector_norm(self._block(k), dim=0) for k in range(-(-self.shape[1] // DRAWN))])
