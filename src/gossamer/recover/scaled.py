"""A matrix in units of its own size: 2^-e A, with e from one look.

    2^e <= max |A^T v| < 2^(e + 1)      v fixed, |v_i| < 1, no entry zero                                                     (1)

Columns then have norms about one, whatever the units of A. (1) sees every entry: NaN and infinities show in it.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._errors import UsageError
from .operators import BLOCK_NUMBERS, Operator, operator
from .units import exponent_of, shifted

FAINT = 60  # a second look, at 2^60 v, where (1) is below 2^-60: products of the first one may have vanished
SQUARES = {torch.float32: 40, torch.float64: 480}  # exponents up to which squares of numbers near 2^e are safe


class Scaled(Operator):
    """2^e A. Half of the factor is applied before each product and half after it, so that neither overflows nor vanishes."""

    def __init__(self, A: Operator, e: int):
        self.A, self.e, self.before, self.after = A, e, e // 2, e - e // 2
        self.shape, self.dtype, self.device = A.shape, A.dtype, A.device

    def matvec(self, x: Tensor) -> Tensor:
        return shifted(self.A.matvec(shifted(x, self.before)), self.after)

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        for first, block in self.A.adjoint(shifted(r, self.before)):
            yield first, shifted(block, self.after)

    def columns(self, ids: Tensor) -> Tensor:
        return shifted(self.A.columns(ids), self.e)

    def norms(self) -> Tensor:
        if abs(self.e) <= SQUARES[self.dtype]:
            return shifted(self.A.norms(), self.e)
        step = max(1, BLOCK_NUMBERS // max(1, self.shape[0]))
        return torch.cat(
            [self.columns(ids).norm(dim=0) for ids in torch.arange(self.shape[1], device=self.device).split(step)]
        )


def normalised(who: str, A: Any) -> tuple[Operator, int]:
    """2^-e A by (1), and e. Raises UsageError if A is no operator, or holds NaN or infinities."""
    A = operator(A, who)
    v = torch.cos(torch.arange(1, A.shape[0] + 1, dtype=torch.float64) * 1.618).to(A.device, A.dtype)
    down = -A.shape[0].bit_length()  # no sum can overflow
    top = _largest(A, shifted(v, down))
    if not math.isfinite(top):
        raise UsageError(who, "A holds entries that are NaN or infinite", remedy="drop or impute these columns")
    if top < 2.0**-FAINT:
        top, down = _largest(A, shifted(v, FAINT)), FAINT
    e = exponent_of(top) - down if top > 0.0 else 0
    return (A if e == 0 else Scaled(A, -e)), e


def _largest(A: Operator, r: Tensor) -> float:
    """max |A^T r|; NaN if any entry is."""
    tops = [block.abs().max() for _, block in A.adjoint(r) if block.numel()]
    return float(torch.stack(tops).max()) if tops else 0.0
