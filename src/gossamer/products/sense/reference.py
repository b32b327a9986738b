# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Sensing: the gradient of a sparse layer's weights at coordinates off its support, from its input x and dy.

    sampled      dW at given block ids: the sampled product (SDDMM) of the weight gradient                 2 B m FLOPs
    strongest    the k blocks off the support with the largest |dW|: the dense gradient is computed one    2 B N FLOPs
                 slab of rows at a time, and only the best blocks are kept: memory O(slab + k)

``g`` is the :class:`Geometry` of a convolution, or None for a linear layer. Ties go to the lower id. With a seed they
go to the lower splitmix64(id xor seed), a random order that does not depend on blocks or on the order of candidates.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...support import INT, Support, grid_of
from ..conv2d import reference as conv2d
from ..conv2d.reference import Geometry
from ..linear import reference as linear

SLAB_NUMBERS = 1 << 22  # numbers in one slab of the dense gradient
# The constants of splitmix64, as int64.
GAMMA, FIRST, SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def sampled(
    dy: Tensor, x: Tensor, ids: Tensor, shape: tuple[int, int], block: tuple[int, int], g: Geometry | None = None
) -> Tensor:
    """Gradient at sorted block ids, (m,) int64 -> (m,) or (m, h, w).

    Linear: dy (..., rows), x (..., cols); else images.
    """
    grid = grid_of(shape, block)
    starts = torch.arange(grid[0] + 1, device=ids.device) * grid[1]
    crow, col = torch.searchsorted(ids, starts).to(INT), (ids % grid[1]).to(INT)
    if g is not None:
        return conv2d.sampled(dy, x, crow, col, shape, block, g)
    return linear.sampled(dy.reshape(-1, shape[0]), x.reshape(-1, shape[1]), crow, col, shape, block)


def strongest(
    operands: Sequence[tuple[Tensor, Tensor]],
    s: Support,
    k: int,
    g: Geometry | None = None,
    reduce: Callable[[Tensor], object] | None = None,
    seed: int | None = None,
    rows_of: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k strongest blocks off the support: ids (k,) int64, sorted, and gradients (k,) or (k, h, w).

    Args:
        operands: pairs (dy, x), one per micro-batch; their gradients are added.
        s: the support.
        k: number of blocks.
        g: geometry of a convolution, or None.
        reduce: changes every slab of the gradient in place (in a distributed run, to the mean over the ranks).
        seed: breaks ties at random; None: the lower id wins.
        rows_of: makes a slab, (operands, rows, s, g) -> (rows, cols); by default :func:`dense_rows`.
    """
    (h, w), (block_rows, block_cols) = s.block, s.grid
    dtype, device = operands[0][0].dtype, s.col.device
    best = (torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=dtype, device=device))  # ids, scores
    blocks = torch.empty(0, h, w, dtype=dtype, device=device)
    step = max(1, SLAB_NUMBERS // (h * block_cols * w))
    for top in range(0, block_rows, step):
        high = min(step, block_rows - top)
        slab = (rows_of or dense_rows)(operands, slice(top * h, (top + high) * h), s, g)  # (rows, cols)
        if reduce is not None:
            reduce(slab)
        slab = pad(slab, (0, block_cols * w - s.shape[1], 0, high * h - slab.shape[0]))
        slab = slab.view(high, h, block_cols, w).transpose(1, 2).reshape(-1, h, w)
        score = (slab.abs().flatten() if (h, w) == (1, 1) else slab.flatten(1).norm(dim=1)).nan_to_num_(0.0, math.inf)
        crow = s.crow[top : top + high + 1]
        rows = torch.repeat_interleave(torch.arange(high, device=device), crow.diff())
        kept = rows * block_cols + s.col[int(crow[0]) : int(crow[-1])]
        score[kept] = -1.0
        ids = top_k(score, min(k, score.numel() - kept.numel()), tie_keys(None, seed, top * block_cols))
        scores, blocks = torch.cat([best[1], score[ids]]), torch.cat([blocks, slab[ids]])
        ids = torch.cat([best[0], ids + top * block_cols])
        chosen = top_k(scores, min(k, scores.numel()), tie_keys(ids, seed))
        best, blocks = (ids[chosen], scores[chosen]), blocks[chosen]
    return best[0], blocks.flatten() if (h, w) == (1, 1) else blocks


def top_k(score: Tensor, k: int, ties: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Indices of the k largest entries, sorted by index; NaN counts as the smallest. (m,) -> (k,) int64.

    Args:
        score: the entries.
        k: number of indices.
        ties: keys of some indices, (t,) -> (t,): ties go to the lower key; None: to the lower index.
    """
    if k <= 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    if k >= score.numel():
        return torch.arange(score.numel(), device=score.device)
    threshold = torch.topk(score, k, sorted=False)[0].min()
    if threshold.isnan():  # torch sorts NaN as the largest
        return top_k(score.nan_to_num(-math.inf, math.inf, -math.inf), k, ties)
    above = (score > threshold).nonzero().flatten()
    level = (score == threshold).nonzero().flatten()
    places = k - above.numel()
    if ties is not None and places < level.numel():
        level = level[torch.topk(ties(level), places, largest=False, sorted=False)[1]]
    return torch.cat([above, level[:places]]).sort()[0]


def tie_keys(ids: Tensor | None, seed: int | None, first: int = 0) -> Callable[[Tensor], Tensor] | None:
    """The keys for ties in :func:`top_k`, for scores of these ids, or of ``first``, ``first`` + 1, ...; None without a
    seed."""
    return None if seed is None else lambda at: tie_key(at + first if ids is None else ids[at], seed)


def tie_key(ids: Tensor, seed: int) -> Tensor:
    """splitmix64(id xor seed) (Steele, Lea & Flood 2014), (m,) int64 -> (m,) int64. It is injective."""
    z = (ids ^ seed) + GAMMA  # int64 wraps round
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def dense_rows(operands: Sequence[tuple[Tensor, Tensor]], rows: slice, s: Support, g: Geometry | None) -> Tensor:
    """Some rows of the dense gradient, summed over the micro-batches."""
    if g is None:
        parts = (dy.reshape(-1, s.shape[0])[:, rows].t() @ x.reshape(-1, s.shape[1]) for dy, x in operands)
        return functools.reduce(Tensor.add_, parts)
    total = operands[0][0].new_zeros(len(range(*rows.indices(s.shape[0]))), s.shape[1])
    for dy, x in operands:
        for part, columns in conv2d.unfolded(x, g):
            total += conv2d.flat_outputs(dy[part, rows]).t() @ columns
    return total
