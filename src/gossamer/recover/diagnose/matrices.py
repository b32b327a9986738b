"""How good is a matrix as a measurement? Columns are scaled to unit norm first.

    coherence     max |a_i . a_j|; at least Welch's bound
    isometry      delta_s = max over |S| = s of ||A_S^T A_S - I||: sampled supports and local swaps bound it from below, Gershgorin's
                  (s - 1) coherence from above; beside them the edge law of a single Gaussian support, 2 sqrt(s/m) + s/m
    convexity     alpha, beta: extreme eigenvalues of A_S^T A_S / m over sampled supports; of gated ReLUs beside the population formula

Sampling finds what is bad; that nothing is, no sampling can show.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import Unfit, check_count
from ...ops.csr_sense.op import top_k
from ...support import distinct
from ..operators import BLOCK_NUMBERS, GatedReLU, Operator, operator
from ..theory import edge_law, gated_gram, welch


class Coherence(NamedTuple):
    """``value``: max |a_i . a_j| / (|a_i| |a_j|), between columns ``pair``; ``welch``: the least that is possible at this size."""

    value: float
    pair: tuple[int, int]
    welch: float


def coherence(A: Any) -> Coherence:
    """Mutual coherence of a matrix or operator, by blocks of columns: m d^2 multiply-adds. Zero columns count for nothing."""
    A = operator(A, "coherence")
    m, d = A.shape
    step, best, pair = max(1, BLOCK_NUMBERS // max(m, d)), 0.0, (0, 0)
    blocks = torch.arange(d, device=A.device).split(step)
    for i, ids in enumerate(blocks):
        left = unit_columns(A, ids)
        for other in blocks[i:]:
            right = left if other is ids else unit_columns(A, other)
            gram = (left.T @ right).abs()
            if other is ids:
                gram.fill_diagonal_(0.0)
            if float(gram.max()) > best:
                best, at = float(gram.max()), int(gram.argmax())
                pair = int(ids[at // gram.shape[1]]), int(other[at % gram.shape[1]])
    return Coherence(best, pair, welch(m, d))


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


def isometry(A: Any, s: int, *, supports: int = 2000, swaps: int = 100, starts: int = 3, rng: torch.Generator | None = None) -> Isometry:
    """Bounds of delta_s after scaling columns to unit norm. Sampling bounds it from below only: read ``improved`` as "at least".

    Args:
        supports: drawn at random; swaps: exchanges of one column tried from each of the ``starts`` worst of them.
        rng: of the supports; None is a fixed seed.
    """
    A = operator(A, "isometry")
    _check_size("isometry", A, s)
    if not float(A.norms().min()) > 0:
        raise Unfit("isometry", "A has zero columns, and none of them can be scaled to unit norm", remedy="drop them")
    drawn = _supports(A.shape[1], s, supports, rng)
    low, high = _edges(A, drawn, normalised=True)
    delta = torch.maximum(high - 1, 1 - low)
    best, where = float(delta.max()), drawn[int(delta.argmax())]
    sampled = best
    for i in delta.topk(min(starts, len(delta))).indices.tolist():
        found, support = _swapped(A, drawn[i], float(delta[i]), swaps)
        if found > best:
            best, where = found, support
    gershgorin = (s - 1) * coherence(A).value
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
    """
    A = operator(A, "convexity")
    _check_size("convexity", A, s)
    drawn = _supports(A.shape[1], s, supports, rng)
    low, high = _edges(A, drawn, normalised=False)
    population: tuple[float | None, float | None, float | None] = (None, None, None)
    if generators is not None:
        if not isinstance(A, GatedReLU) or generators.shape != (A.neurons, A.features):
            raise Unfit("convexity", "generators belong to a GatedReLU, one row per neuron", got=tuple(generators.shape))
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


def _check_size(who: str, A: Operator, s: int) -> None:
    check_count(who, "s", s, 1)
    if s > A.shape[1]:
        raise Unfit(who, f"A has {A.shape[1]} columns, and no support of {s}")


def _supports(d: int, s: int, count: int, rng: torch.Generator | None) -> Tensor:
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    return torch.stack([distinct(d, s, rng) for _ in range(count)])


def _gram(A: Operator, ids: Tensor) -> Tensor:
    a = A.columns(ids)
    return a.T @ a / A.shape[0]


def _edges(A: Operator, supports: Tensor, normalised: bool) -> tuple[Tensor, Tensor]:
    """Extreme eigenvalues of the Gram matrices of many supports (c, s)."""
    m, s = A.shape[0], supports.shape[1]
    low, high = [], []
    for part in supports.to(A.device).split(max(1, BLOCK_NUMBERS // (m * s))):
        ids = part.flatten()
        a = (unit_columns(A, ids) if normalised else A.columns(ids) / m**0.5).view(m, *part.shape).permute(1, 0, 2)
        values = torch.linalg.eigvalsh(a.transpose(1, 2) @ a)
        low.append(values[:, 0])
        high.append(values[:, -1])
    return torch.cat(low), torch.cat(high)


def _swapped(A: Operator, support: Tensor, delta: float, swaps: int) -> tuple[float, Tensor]:
    """Exchanges, one at a time, the column that adds least to the extreme eigenvector for the one that correlates most with its image."""
    support = support.to(A.device)
    norms = A.norms()
    for _ in range(swaps):
        a = unit_columns(A, support)
        values, vectors = torch.linalg.eigh(a.T @ a)
        v = vectors[:, -1] if float(values[-1]) - 1 >= 1 - float(values[0]) else vectors[:, 0]
        pull = (A.rmatvec(a @ v) / norms).abs()
        if float(values[-1]) - 1 < 1 - float(values[0]):  # the image of the least eigenvector is short: what lies along it shortens it more
            w = torch.linalg.pinv(a.T) @ v
            pull = (A.rmatvec(w) / norms).abs()
        pull[support] = -1.0
        least, trials = int(v.abs().argmin()), []
        for j in top_k(pull, 4):
            trial = support.clone()
            trial[least] = j
            low, high = _edges(A, trial[None], normalised=True)
            trials.append((max(float(high) - 1, 1 - float(low)), trial))
        found, trial = max(trials, key=lambda pair: pair[0])
        if found <= delta * (1 + 1e-9):
            break
        delta, support = found, trial
    return delta, support.cpu()
