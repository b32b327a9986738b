# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Scaling by powers of two: inputs are scaled to the order of one, results are scaled back. Both steps are exact.

    exponent(t)         e with 2^e <= max |t| < 2^(e + 1)
    shifted(t, e)       t 2^e, also where 2^e alone is out of range for the dtype of t
    times(v, e)         v 2^e for a Python number
    put_back(t, e)      t 2^e, or None if the dtype of t cannot hold it

In single precision the square of 1e-23 is 0, and the square of 1e23 is infinite. Squares of numbers near one are safe.
"""

import math

import torch
from torch import Tensor

REACH = {torch.float64: 1000, torch.float32: 120, torch.bfloat16: 120, torch.float16: 14}  # both 2^-e and 2^e exist


def exponent(t: Tensor) -> int:
    """The exponent of the power of two below the largest |t|. 0 where t is empty, zero or not finite."""
    if not t.numel():
        return 0
    low, high = torch.aminmax(t)
    return exponent_of(max(-float(low), float(high)))


def exponent_of(v: float) -> int:
    """The exponent of the power of two below v > 0. 0 where v is 0, infinite or NaN."""
    return math.frexp(v)[1] - 1 if 0.0 < v < math.inf else 0


def shifted(t: Tensor, e: int) -> Tensor:
    """t 2^e. The same tensor where e = 0."""
    while e:
        step = max(-REACH[t.dtype], min(REACH[t.dtype], e))
        t, e = t * 2.0**step, e - step
    return t


def times(v: float, e: int) -> float:
    """v 2^e. Infinite where it overflows."""
    try:
        return math.ldexp(v, e)
    except OverflowError:
        return math.copysign(math.inf, v)


def put_back(t: Tensor, e: int) -> Tensor | None:
    """t 2^e if the dtype of t holds it to rounding, relative to the largest entry.

    None where it overflows or underflows.
    """
    moved = shifted(t, e)
    if not t.numel():
        return moved
    lost = (shifted(moved, -e) - t).abs().max()
    fine = bool(moved.isfinite().all()) and float(lost) <= 4 * torch.finfo(t.dtype).eps * float(t.abs().max())
    return moved if fine else None


def beyond(name: str, t: Tensor, e: int) -> str:
    """A sentence for a t 2^e that its dtype cannot hold."""
    size = round((exponent(t) + e) * math.log10(2))
    wider = "solve in float64, or " if t.dtype == torch.float32 else ""
    kept = str(t.dtype).removeprefix("torch.")
    return f"{name} is of the order of 1e{size}, which {kept} cannot hold: {wider}choose other units; zero is returned"
