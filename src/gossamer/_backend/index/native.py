"""The fast counterparts of :mod:`.reference`: no sorting, no index of eight bytes, one pass where torch takes several."""

from typing import Any

import torch
from torch import Tensor

from ..dispatch import Kernel
from ..native import BEST, MISSING
from .reference import INT

TAKEN = (torch.float32, torch.float64)


def kernels(m: Any, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def rows_of(w: Tensor) -> tuple[Tensor, Tensor]:
        crow, threads = torch.empty(w.shape[0] + 1, dtype=INT), torch.get_num_threads()
        col = torch.empty(m.row_pointers(w, crow, threads), dtype=INT)
        m.row_columns(w, crow, col, threads)
        return crow, col

    def columns_of(crow: Tensor, col: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor]:
        ccol, row, perm = (torch.empty(size, dtype=INT) for size in (cols + 1, col.numel(), col.numel()))
        m.column_order(crow, col, ccol, row, perm)
        return ccol, row, perm

    def values_at(w: Tensor, crow: Tensor, col: Tensor) -> Tensor:
        values = w.new_empty(col.shape)
        m.values_at(w, crow, col, values, torch.get_num_threads())
        return values

    return {
        "rows_of": Kernel(name, rows_of, _unfit),
        "columns_of": Kernel(name, columns_of, _unfit_index),
        "values_at": Kernel(name, values_at, lambda w, crow, col: _unfit(w) + _unfit_index(crow, col)),
    }


def _unfit(w: Tensor) -> list[str]:
    reasons = _unfit_index(w)
    if w.dtype not in TAKEN:
        reasons.append(f"entries must be float32 or float64, not {w.dtype}")
    if not w.is_contiguous() or w.numel() >= 2**31:
        reasons.append("the matrix must be contiguous, of fewer than 2**31 entries")
    return reasons


def _unfit_index(first: Tensor, *_: Any) -> list[str]:
    if BEST is None:
        return [f"the native kernels are missing: {MISSING}"]
    return [] if first.is_cpu else [f"they run on the CPU; the tensors are on {first.device}"]


KERNELS = kernels(BEST)
