# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Random rows of the orthonormal cosine transform (DCT-II), scaled. State: one int64 per row.

DCT of size d of x = Re(FFT of size 2 d of x padded with zeros, times exp(-i pi k / (2 d)))       O(d log d) per product
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..._errors import UsageError, check_count
from ...support import distinct
from ..gates import generator
from .protocol import BLOCK_NUMBERS, Operator, column_norms


class SubsampledDCT(Operator):
    """Random rows of the orthonormal DCT-II of size cols, scaled by sqrt(cols / rows): columns have unit norm on
    average.

    Args:
        rows: number of chosen rows.
        cols: size of the transform.
        seed: seed of the random choice.
        dtype: dtype of the products.
        device: device of the products.

    Raises: UsageError for sizes below 1, or more rows than the transform has.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ):
        check_count("SubsampledDCT", "rows", rows, 1)
        if rows > cols:
            raise UsageError("SubsampledDCT", f"a transform of size {cols} has fewer than {rows} rows")
        self.shape, self.dtype, self.device = (rows, cols), dtype, torch.device(device)
        self.kept = distinct(cols, rows, generator(seed, 0)).to(self.device)  # frequencies
        # sqrt(d / m) times the orthonormal scale: frequency 0 has its own
        self.scale = torch.where(self.kept == 0, (1 / rows) ** 0.5, (2 / rows) ** 0.5).to(dtype)
        turn = torch.arange(cols, device=self.device, dtype=torch.float64) * (-torch.pi / (2 * cols))
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        self.turn = torch.polar(torch.ones_like(turn), turn).to(kind)

    def _waves(self, x: Tensor) -> Tensor:
        """FFT of size 2 cols of a vector padded with zeros; its first cols entries."""
        transform: Callable[[Tensor, int], Tensor] = torch.fft.fft  # torch leaves it without a type
        return transform(x, 2 * self.shape[1])[: self.shape[1]]

    def matvec(self, x: Tensor) -> Tensor:
        waves = self._waves(x) * self.turn  # real part: sum_j x_j cos(pi k (2 j + 1) / (2 d))
        return waves.real[self.kept] * self.scale

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        full = self.turn.new_zeros(self.shape[1])
        full[self.kept] = (r * self.scale).to(full.dtype)
        yield 0, self._waves(full * self.turn).real

    def columns(self, ids: Tensor) -> Tensor:
        phase = self.kept[:, None].double() * (2 * ids[None, :] + 1).double() * (torch.pi / (2 * self.shape[1]))
        return phase.cos().to(self.dtype) * self.scale[:, None]

    def norms(self) -> Tensor:
        return column_norms(self, max(1, BLOCK_NUMBERS // self.shape[0]))
