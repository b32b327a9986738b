"""The last act of every event: the lowest-scored units go, the highest-scored candidates come.

Ties: among equal scores the unit of lower key splitmix64(id xor ties) stays or comes. The keys of two units never agree, so for one number
``ties`` this is a total order, whatever the order in which candidates come; over random numbers all orders are alike, and no row, column or
low id is preferred.
"""

import math

import torch
from torch import Tensor

from ..products.sense.op import tie_key, tie_keys, top_k
from ..support import Support


def rewire(
    s: Support, drop_score: Tensor, born: Tensor, born_score: Tensor, drop: int, grow: int, min_fan_in: int = 0, ties: int = 0
) -> Support:
    """The support without its ``drop`` lowest-scored units and with the ``grow`` highest-scored candidates.

    Args:
        drop_score: (n,), row order.
        born, born_score: candidate ids (m,) int64, none of them among the units that stay, and their scores (m,).
        ties: a number that decides between equal scores; an event draws it from the Rewirer's generator.
    """
    return joined(s, survivors(s, drop_score, drop, min_fan_in, ties), born, born_score, grow, ties)


def joined(s: Support, stays: Tensor, born: Tensor, born_score: Tensor, grow: int, ties: int) -> Support:
    """The units at the positions ``stays``, (n - drop,) or a mask (n,), and the ``grow`` highest-scored candidates."""
    grown = born[top_k(born_score, grow, tie_keys(born, ties))]
    return Support.from_ids(torch.cat([s.ids()[stays], grown]), s.shape, s.unit)


def survivors(s: Support, score: Tensor, drop: int, min_fan_in: int = 0, ties: int = 0) -> Tensor:
    """Positions (row order) of the units that stay when the ``drop`` lowest scores go, sorted, (n - drop,) int64."""
    return top_k(_shielded(s, score, min_fan_in, ties), s.n - drop, tie_keys(s.ids(), ties))


def leavers(s: Support, score: Tensor, drop: int, min_fan_in: int = 0, ties: int = 0) -> Tensor:
    """Positions of the ``drop`` units that go, sorted, (drop,) int64."""
    goes = torch.ones(s.n, dtype=torch.bool, device=score.device)
    goes[survivors(s, score, drop, min_fan_in, ties)] = False
    return goes.nonzero().flatten()


def ranking(score: Tensor, keys: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, NaN last; among equals the lower key first. Both (m,)."""
    order = torch.argsort(keys)
    clean = score.nan_to_num(-math.inf, math.inf, -math.inf)
    return order[torch.sort(clean[order], descending=True, stable=True)[1]]


def protected(s: Support, score: Tensor, min_fan_in: int, ties: int = 0) -> Tensor:
    """Positions of the ``min_fan_in`` best units of every unit row: these never go."""
    order = ranking(score, tie_key(s.ids(), ties))
    rows = s.rows().long()[order]
    order = order[torch.argsort(rows, stable=True)]  # by row, within a row best first
    place = torch.arange(s.n, device=order.device) - s.crow.long()[s.rows().long()[order]]
    return order[place < min_fan_in]


def _shielded(s: Support, score: Tensor, min_fan_in: int, ties: int) -> Tensor:
    """The score, infinite where a unit is protected."""
    if min_fan_in:
        score = score.clone()
        score[protected(s, score, min_fan_in, ties)] = math.inf
    return score
