# pyright: strict
"""The fast counterparts of :mod:`.reference`: without sorting, without int64, and in one pass."""

from typing import Any, cast

import torch
from torch import Tensor, get_num_threads

from ..dispatch import Kernel
from ..native import BEST, MISSING, Build
from .reference import INT

DTYPES = (torch.float32, torch.float64)


def kernels(m: Build, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def rows_of(w: Tensor) -> tuple[Tensor, Tensor]:
        crow, threads = torch.empty(w.shape[0] + 1, dtype=INT), get_num_threads()
        col = torch.empty(m.row_pointers(w, crow, threads), dtype=INT)
        m.row_columns(w, crow, col, threads)
        return crow, col

    def columns_of(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
        ccol, row, perm = (torch.empty(size, dtype=INT) for size in (cols + 1, col.numel(), col.numel()))
        m.column_order(crow, col, ccol, row, perm)
        return ccol, row, perm

    def values_at(w: Tensor, crow: Tensor, col: Tensor) -> Tensor:
        values = w.new_empty(col.shape)
        m.values_at(w, crow, col, values, get_num_threads())
        return values

    return {
        "rows_of": Kernel(name, rows_of, _reasons_against),
        "columns_of": Kernel(name, columns_of, _reasons_against_index),
        "values_at": Kernel(name, values_at, _reasons_against_reading),
    }


def _reasons_against(w: Tensor) -> list[str]:
    reasons = _reasons_against_index(w)
    if w.dtype not in DTYPES:
        reasons.append(f"entries must be float32 or float64, not {w.dtype}")
    if not w.is_contiguous() or w.numel() >= 2**31:
        reasons.append("the matrix must be contiguous, of fewer than 2**31 entries")
    return reasons


def _reasons_against_reading(w: Tensor, crow: Tensor, col: Tensor) -> list[str]:
    return _reasons_against(w) + _reasons_against_index(crow, col)


def _reasons_against_index(first: Tensor, *_: Any) -> list[str]:
    if BEST is None:
        return [f"the native kernels are missing: {MISSING}"]
    return [] if first.is_cpu else [f"they run on the CPU; the tensors are on {first.device}"]


KERNELS = kernels(cast(Build, BEST))  # if BEST is None, their reasons_against is never empty
