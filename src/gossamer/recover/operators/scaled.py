# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""A matrix scaled to the order of one: 2^-e A, with e from one product.

    2^e <= max |A^T v| < 2^(e + 1)      v fixed, |v_i| < 1, no entry zero                                          (1)

The norms of the scaled columns are about one. Every entry enters (1), so NaN and infinities in A are found.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._errors import UsageError
from ..units import exponent_of, shifted
from .conversion import operator
from .protocol import BLOCK_NUMBERS, Operator, column_norms

FAINT = 60  # below 2^-60 in (1) products may have underflowed: (1) is computed again with 2^60 v
SQUARES = {torch.float32: 40, torch.float64: 480}  # exponents up to which squares of numbers near 2^e are safe


class Scaled(Operator):
    """2^e A.

    Half of the factor is applied before each product and half after it, so that neither overflows nor vanishes.
    """

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
        return column_norms(self, max(1, BLOCK_NUMBERS // max(1, self.shape[0])))


def normalised(who: str, A: object) -> tuple[Operator, int]:
    """2^-e A by (1), and e. Raises UsageError if A is not an operator, or has NaN or infinite entries."""
    made = operator(A, who)
    v = torch.cos(torch.arange(1, made.shape[0] + 1, dtype=torch.float64) * 1.618).to(made.device, made.dtype)
    down = -made.shape[0].bit_length()  # no sum can overflow
    top = _largest(made, shifted(v, down))
    if not math.isfinite(top):
        raise UsageError(who, "A holds entries that are NaN or infinite", remedy="drop or impute these columns")
    if top < 2.0**-FAINT:
        top, down = _largest(made, shifted(v, FAINT)), FAINT
    e = exponent_of(top) - down if top > 0.0 else 0
    return (made if e == 0 else Scaled(made, -e)), e


def _largest(A: Operator, r: Tensor) -> float:
    """max |A^T r|; NaN if any entry is NaN."""
    tops = [block.abs().max() for _, block in A.adjoint(r) if block.numel()]
    return float(torch.stack(tops).max()) if tops else 0.0
