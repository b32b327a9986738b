"""Draws blocks off a support, with probability proportional to the weight of the row times the weight of the column."""

import torch
from torch import Tensor

from .._sampling import weighted
from ..support import Support


def sample_outside_by(
    s: Support, m: int, row_weight: Tensor, col_weight: Tensor, rng: torch.Generator | None = None
) -> Tensor:
    """Ids of ``m`` blocks that ``s`` does not keep, drawn one after another, without replacement, with probability
    proportional to row_weight[i] col_weight[j]. Weights (grid_rows,), (grid_cols,) -> sorted, (m,) int64. O(m log n).

    More than half of all zeros are drawn uniformly. So are the blocks that are missing after a few weighted rounds,
    which happens if the weights are very unequal.
    """
    if 2 * m > s.total - s.n:
        return s.sample_outside(m, rng)
    ids = weighted(m, row_weight, col_weight, lambda ids: s.find(ids) < 0, rng)
    if ids.numel() < m:
        taken = Support.from_ids(torch.cat([s.ids(), ids]), s.shape, s.block)
        ids = torch.cat([ids, taken.sample_outside(m - ids.numel(), rng)])
    return ids.sort()[0]
