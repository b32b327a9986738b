"""How good is a matrix as a measurement?

    coherence     max |a_i . a_j| of unit columns; at least Welch's bound
    isometry      delta_s = max over |S| = s of ||A_S^T A_S - I||, of unit columns or of A as it is: sampled supports and local swaps
                  bound it from below, Gershgorin's max |G_ii - 1| + (s - 1) max |G_ij|, G = A^T A, from above; beside them the edge law of
                  a single Gaussian support, 2 sqrt(s/m) + s/m
    convexity     alpha, beta: extreme eigenvalues of A_S^T A_S / m over sampled supports; of gated ReLUs beside the population formula

Sampling finds what is bad; that nothing is, no sampling can show.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import Unfit, check_count
from ...ops.csr_sense.op import top_k
from ...support import distinct
from ..operators import BLOCK_NUMBERS, GatedReLU, Operator, operator
from ..theory import edge_law, gated_gram, welch

Columns = Callable[[Operator, Tensor], Tensor]  # unit_columns or plain_columns


class Coherence(NamedTuple):
    """``value``: max |a_i . a_j| / (|a_i| |a_j|), between columns ``pair``; ``welch``: the least that is possible at this size."""

    value: float
    pair: tuple[int, int]
    welch: float


def coherence(A: Any) -> Coherence:
    """Mutual coherence of a matrix or operator, by blocks of columns: m d^2 multiply-adds. Zero columns count for nothing."""
    A = _checked("coherence", A)
    return Coherence(*_largest_product(A, unit_columns), welch(*A.shape))


def _largest_product(A: Operator, columns: Columns) -> tuple[float, tuple[int, int]]:
    """max |a_i . a_j| over i != j, and such a pair."""
    m, d = A.shape
    step, best, pair = max(1, BLOCK_NUMBERS // max(m, d)), 0.0, (0, 0)
    blocks = torch.arange(d, device=A.device).split(step)
    for i, ids in enumerate(blocks):
        left = columns(A, ids)
        for other in blocks[i:]:
            right = left if other is ids else columns(A, other)
            gram = (left.T @ right).abs()
            if other is ids:
                gram.fill_diagonal_(0.0)
            if float(gram.max()) > best:
                best, at = float(gram.max()), int(gram.argmax())
                pair = int(ids[at // gram.shape[1]]), int(other[at % gram.shape[1]])
    return best, pair


class Isometry(NamedTuple):
    """Bounds of the restricted isometry constant delta_s: ``sampled`` (the largest of the supports drawn) and ``improved`` (after local
    swaps) from below, ``gershgorin`` from above. ``mean`` over the supports, ``edge``: the edge law of one Gaussian support."""

    s: int
    mean: float
    sampled: float
    improved: float
    gershgorin: float
    edge: float
    support: Tensor  # where ``improved`` is attained, sorted

    def __str__(self) -> str:
        bounds = f"{self.improved:.3f} <= delta_{self.s} <= {self.gershgorin:.3f}"
        return f"{bounds} (one random support {self.mean:.3f}, worst drawn {self.sampled:.3f}; edge law {self.edge:.3f})"


def isometry(
    A: Any,
    s: int,
    *,
    normalise: bool = True,
    supports: int = 2000,
    swaps: int = 100,
    starts: int = 3,
    rng: torch.Generator | None = None,
) -> Isometry:
    """Bounds of delta_s. Sampling bounds it from below only: read ``improved`` as "at least".

    Args:
        normalise: scale columns to unit norm first; False is the constant of A itself.
        supports: drawn at random; swaps: exchanges of one column tried from each of the ``starts`` worst of them.
        rng: of the supports; None is a fixed seed.

    Raises: Unfit if A is empty or holds NaN or infinities, if it has no s columns, or, to be normalised, has zero columns.
    """
    A = _checked("isometry", A, s)
    for name, value, least in (("supports", supports, 1), ("swaps", swaps, 0), ("starts", starts, 0)):
        check_count("isometry", name, value, least)
    if normalise and not float(A.norms().min()) > 0:
        remedy = "drop them, or normalise=False for the constant of A as it is"
        raise Unfit("isometry", "A has zero columns, and none of them can be scaled to unit norm", remedy=remedy)
    columns = unit_columns if normalise else plain_columns
    drawn = _supports(A.shape[1], s, supports, rng)
    low, high = _edges(A, drawn, columns)
    delta = torch.maximum(high - 1, 1 - low)
    best, where = float(delta.max()), drawn[int(delta.argmax())]
    sampled = best
    for i in delta.topk(min(starts, len(delta))).indices.tolist():
        found, support = _swapped(A, drawn[i], float(delta[i]), swaps, columns)
        if found > best:
            best, where = found, support
    off = 0.0 if normalise else float((A.norms().square() - 1).abs().max())
    gershgorin = off + (s - 1) * _largest_product(A, columns)[0]
    return Isometry(s, float(delta.mean()), sampled, best, gershgorin, edge_law(s, A.shape[0]), where.sort()[0])


class Convexity(NamedTuple):
    """Restricted strong convexity and smoothness over sampled supports: the extreme eigenvalues ``alpha`` and ``beta`` of A_S^T A_S / m,
    their means over supports, and, for gated ReLUs with known generators, those of the population formula on the same supports."""

    s: int
    alpha: float
    beta: float
    mean_alpha: float
    mean_beta: float
    population_alpha: float | None
    population_beta: float | None
    deviation: float | None  # largest difference between an entry of A_S^T A_S / m and its population value

    def __str__(self) -> str:
        text = f"alpha {self.alpha:.3g}, beta {self.beta:.3g} over supports of {self.s}"
        if self.population_alpha is not None:
            text += f" (population: {self.population_alpha:.3g}, {self.population_beta:.3g})"
        return text


def convexity(A: Any, s: int, *, generators: Tensor | None = None, supports: int = 200, rng: torch.Generator | None = None) -> Convexity:
    """alpha and beta of an operator on sampled supports, columns as they are, rows averaged.

    Args:
        generators: h (p, d) of a :class:`GatedReLU`: the population formula (inputs N(0, I), theory.py) is then evaluated too.
        supports: drawn at random; rng: of them, None is a fixed seed.

    Raises: Unfit if A is empty or holds NaN or infinities, has no s columns, or the generators are not those of a GatedReLU.
    """
    A = _checked("convexity", A, s)
    check_count("convexity", "supports", supports, 1)
    if generators is not None:
        if not isinstance(A, GatedReLU) or generators.shape != (A.neurons, A.features):
            raise Unfit("convexity", "generators belong to a GatedReLU, one row per neuron", got=tuple(generators.shape))
        if not bool(generators.isfinite().all()):
            raise Unfit("convexity", "generators hold entries that are NaN or infinite")
        if not bool((generators != 0).any(1).all()):
            raise Unfit("convexity", "a generator is zero: its gate is never open, and it has no direction", remedy="drop that neuron")
    drawn = _supports(A.shape[1], s, supports, rng)
    low, high = (values / A.shape[0] for values in _edges(A, drawn, plain_columns))
    population: tuple[float | None, float | None, float | None] = (None, None, None)
    if generators is not None and isinstance(A, GatedReLU):
        grams = [gated_gram(generators, ids // A.features, ids % A.features) for ids in drawn]
        values = torch.stack([torch.linalg.eigvalsh(g)[[0, -1]] for g in grams])
        off = max(float((_gram(A, ids) - g.to(A.dtype)).abs().max()) for ids, g in zip(drawn[:20], grams[:20], strict=True))
        population = (float(values[:, 0].min()), float(values[:, 1].max()), off)
    return Convexity(s, float(low.min()), float(high.max()), float(low.mean()), float(high.mean()), *population)


def unit_columns(A: Operator, ids: Tensor) -> Tensor:
    """Columns scaled to unit norm, zero columns as they are, (m, k)."""
    a = A.columns(ids)
    norms = a.norm(dim=0)
    return a / torch.where(norms > 0, norms, 1.0)


def plain_columns(A: Operator, ids: Tensor) -> Tensor:
    """Columns as they are, (m, k)."""
    return A.columns(ids)


def _checked(who: str, A: Any, s: int | None = None) -> Operator:
    A = operator(A, who)
    if not min(A.shape):
        raise Unfit(who, "A is empty", got=tuple(A.shape))
    if not all(bool(block.isfinite().all()) for _, block in A.adjoint(torch.ones(A.shape[0], dtype=A.dtype, device=A.device))):
        raise Unfit(who, "A holds entries that are NaN or infinite", remedy="drop or impute these columns")
    if s is not None:
        check_count(who, "s", s, 1)
        if s > A.shape[1]:
            raise Unfit(who, f"A has {A.shape[1]} columns, and no support of {s}")
    return A


def _supports(d: int, s: int, count: int, rng: torch.Generator | None) -> Tensor:
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    return torch.stack([distinct(d, s, rng) for _ in range(count)])


def _gram(A: Operator, ids: Tensor) -> Tensor:
    a = A.columns(ids)
    return a.T @ a / A.shape[0]


def _edges(A: Operator, supports: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """Extreme eigenvalues of the Gram matrices of many supports (c, s)."""
    m, s = A.shape[0], supports.shape[1]
    low, high = [], []
    for part in supports.to(A.device).split(max(1, BLOCK_NUMBERS // (m * s))):
        a = columns(A, part.flatten()).view(m, *part.shape).permute(1, 0, 2)
        values = torch.linalg.eigvalsh(a.transpose(1, 2) @ a)
        low.append(values[:, 0])
        high.append(values[:, -1])
    return torch.cat(low), torch.cat(high)


def _swapped(A: Operator, support: Tensor, delta: float, swaps: int, columns: Columns) -> tuple[float, Tensor]:
    """Exchanges, one at a time, the column that adds least to the extreme eigenvector v for one of those off S that promise most: by the
    Ritz values of A_S v and a_j, the eigenvalues of [[lam, p], [p, q]], lam = |A_S v|^2, p = a_j . A_S v, q = |a_j|^2."""
    support, norms = support.to(A.device), A.norms()
    unit = columns is unit_columns
    q = torch.ones_like(norms) if unit else norms.square()
    for _ in range(swaps):
        off = torch.ones_like(norms, dtype=torch.bool).index_fill_(0, support, False).nonzero().flatten()
        if not off.numel():
            break
        a = columns(A, support)
        values, vectors = torch.linalg.eigh(a.T @ a)
        v = vectors[:, -1] if float(values[-1]) - 1 >= 1 - float(values[0]) else vectors[:, 0]
        u = a @ v
        p = A.rmatvec(u) / (norms if unit else 1.0)
        lam = u.square().sum()
        if support.numel() == 1:  # nothing of S stays
            lam, p = torch.ones_like(lam), torch.zeros_like(p)
        middle, radius = (lam + q) / 2, (((lam - q) / 2).square() + p.square()).sqrt()
        promise = torch.maximum(middle + radius - 1, 1 - middle + radius)[off]
        least, trials = int(v.abs().argmin()), []
        for j in off[top_k(promise, min(4, off.numel()))]:
            trial = support.clone()
            trial[least] = j
            low, high = _edges(A, trial[None], columns)
            trials.append((max(float(high) - 1, 1 - float(low)), trial))
        found, trial = max(trials, key=lambda pair: pair[0])
        if found <= delta * (1 + 1e-9):
            break
        delta, support = found, trial
    return delta, support.cpu()
