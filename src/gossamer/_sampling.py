"""Random draws of whole numbers without replacement, in memory of the size of the draw."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._errors import UsageError

ROUNDS = 8  # most rounds of weighted draws


def distinct(total: int, m: int, rng: torch.Generator | None = None) -> Tensor:
    """``m`` distinct numbers of [0, total), sorted, (m,) int64. All subsets are equally likely. Memory O(m).

    Independent draws are added until m are distinct. Among sets of one size, the set of distinct draws is uniform, and
    so is a uniform m-subset of it. If m is more than half of ``total``, the complement is drawn."""
    if not 0 <= m <= total:
        raise UsageError("distinct", f"cannot draw {m} distinct numbers of {total}")
    if m == total:
        return torch.arange(total)
    if m > total // 2:
        others = distinct(total, total - m, rng)
        rank = torch.arange(m)
        return rank + torch.searchsorted(others - torch.arange(total - m), rank, right=True)
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < m:
        short = m - drawn.numel()
        expected = -total * math.log1p(-short / (total - drawn.numel() + 1)) if total < 2**50 else short
        more = torch.randint(total, (int(expected * 1.02) + 16,), generator=rng)
        drawn = unique(torch.cat([drawn, more]))
    if drawn.numel() > m:
        keep = torch.randperm(drawn.numel(), generator=rng)[:m]
        drawn = drawn[keep.sort()[0]]
    return drawn


def distinct_in_rows(rows: int, cols: int, k: int, rng: torch.Generator | None) -> Tensor:
    """k distinct columns of [0, cols) for each row, (rows, k) int64: Floyd's algorithm in all rows at once."""
    drawn = torch.empty(rows, 0, dtype=torch.int64)
    for j in range(cols - k, cols):
        column = torch.randint(j + 1, (rows, 1), generator=rng)
        taken = (drawn == column).any(1, keepdim=True)
        drawn = torch.cat([drawn, torch.where(taken, j, column)], 1)
    return drawn


def weighted(
    m: int, row_weight: Tensor, col_weight: Tensor, is_free: Callable[[Tensor], Tensor], rng: torch.Generator | None
) -> Tensor:
    """At most ``m`` distinct ids i * cols + j for which ``is_free`` is true, in the order of drawing. Each is drawn
    with probability proportional to row_weight[i] col_weight[j]. After ROUNDS rounds there may be fewer than m.
    Weights (rows,) and (cols,) -> (<= m,) int64."""
    rows, cols, device = row_weight.numel(), col_weight.numel(), row_weight.device
    ids = torch.empty(0, dtype=torch.int64, device=device)
    laws = [w.double().cpu().cumsum(0) for w in (row_weight, col_weight)]
    if not all(float(law[-1]) > 0 for law in laws):
        return ids
    for _ in range(ROUNDS):
        short = m - ids.numel()
        if short == 0:
            break
        i, j = (
            torch.searchsorted(law, torch.rand(short + short // 2 + 16, generator=rng, dtype=law.dtype) * law[-1])
            for law in laws
        )
        drawn = (i.clamp_(max=rows - 1) * cols + j.clamp_(max=cols - 1)).to(device)
        ids = _first_occurrences(torch.cat([ids, drawn[is_free(drawn)]]))[:m]
    return ids


def unique(t: Tensor) -> Tensor:
    """The distinct entries, sorted."""
    untyped: Any = t  # the stubs of torch leave the type of Tensor.unique open
    return untyped.unique()


def _first_occurrences(ids: Tensor) -> Tensor:
    """Each id once, in the order of its first occurrence."""
    numbers = unique(ids)
    place = torch.full_like(numbers, ids.numel())
    which = torch.searchsorted(numbers, ids)
    place.scatter_reduce_(0, which, torch.arange(ids.numel(), device=ids.device), "amin")
    return ids[place.sort()[0]]
