"""The last part of every event: the blocks of lowest score are dropped, and the candidates of highest score grow.

Ties: among equal scores, the block of lower key splitmix64(id xor ties) stays or grows. No two blocks have the same
key. So, for a given number ``ties``, this is a total order, which does not depend on the order of the candidates. Over
random numbers all orders are equally likely: no row, no column and no low id is preferred.
"""

import math

import torch
from torch import Tensor

from ..products.sense.op import tie_key, tie_keys, top_k
from ..support import Support


def rewire(
    s: Support,
    drop_score: Tensor,
    candidates: Tensor,
    grow_score: Tensor,
    n_drop: int,
    n_grow: int,
    min_fan_in: int = 0,
    ties: int = 0,
) -> Support:
    """The support without its ``n_drop`` lowest-scored blocks and with the ``n_grow`` highest-scored candidates.

    Args:
        drop_score: (n,), row order.
        candidates: ids (m,) int64, none of them among the blocks that stay.
        grow_score: their scores (m,).
        min_fan_in: incoming blocks that every block row keeps.
        n_drop: number of blocks to drop.
        n_grow: number of candidates to grow.
        ties: a number that decides between equal scores; an event draws it from the Rewirer's generator.
    """
    return joined(s, survivors(s, drop_score, n_drop, min_fan_in, ties), candidates, grow_score, n_grow, ties)


def joined(s: Support, stays: Tensor, candidates: Tensor, grow_score: Tensor, n_grow: int, ties: int) -> Support:
    """The blocks at the positions ``stays``, (n - n_drop,) or a mask (n,), and the ``n_grow`` highest-scored
    candidates."""
    grown = candidates[top_k(grow_score, n_grow, tie_keys(candidates, ties))]
    return Support.from_ids(torch.cat([s.ids()[stays], grown]), s.shape, s.block)


def survivors(s: Support, score: Tensor, n_drop: int, min_fan_in: int = 0, ties: int = 0) -> Tensor:
    """Positions (row order) of the blocks that stay if the ``n_drop`` lowest scores are dropped, sorted, int64."""
    return top_k(_shielded(s, score, min_fan_in, ties), s.n - n_drop, tie_keys(s.ids(), ties))


def dropped(s: Support, score: Tensor, n_drop: int, min_fan_in: int = 0, ties: int = 0) -> Tensor:
    """Positions of the ``n_drop`` blocks that are dropped, sorted, (n_drop,) int64."""
    leaves = torch.ones(s.n, dtype=torch.bool, device=score.device)
    leaves[survivors(s, score, n_drop, min_fan_in, ties)] = False
    return leaves.nonzero().flatten()


def ranking(score: Tensor, keys: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, NaN last; among equals the lower key first. All (m,)."""
    order = torch.argsort(keys)
    clean = score.nan_to_num(-math.inf, math.inf, -math.inf)
    return order[torch.sort(clean[order], descending=True, stable=True)[1]]


def protected(s: Support, score: Tensor, min_fan_in: int, ties: int = 0) -> Tensor:
    """Positions of the ``min_fan_in`` best blocks of every block row. These are never dropped."""
    order = ranking(score, tie_key(s.ids(), ties))
    rows = s.rows().long()[order]
    order = order[torch.argsort(rows, stable=True)]  # by row, within a row best first
    place = torch.arange(s.n, device=order.device) - s.crow.long()[s.rows().long()[order]]
    return order[place < min_fan_in]


def _shielded(s: Support, score: Tensor, min_fan_in: int, ties: int) -> Tensor:
    """The score, infinite where a block is protected."""
    if min_fan_in:
        score = score.clone()
        score[protected(s, score, min_fan_in, ties)] = math.inf
    return score
