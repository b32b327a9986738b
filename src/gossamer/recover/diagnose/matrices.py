"""How good is a matrix as a measurement?

    coherence     max |a_i . a_j| of unit columns; at least Welch's bound
    isometry      delta_s = max over |S| = s of ||A_S^T A_S - I||, of unit columns or of A as it is: sampled supports and local swaps
                  bound it from below, Gershgorin's max |G_ii - 1| + (s - 1) max |G_ij|, G = A^T A, from above; beside them the edge law of
                  a single Gaussian support, 2 sqrt(s/m) + s/m. Where there are few supports, all of them are looked at: the constant itself
    convexity     alpha, beta: extreme eigenvalues of A_S^T A_S / m over sampled supports; of gated ReLUs beside the population formula

Sampling finds what is bad; that nothing is, no sampling can show. A is taken in units of its own size, 2^-e A, so that no square of an
entry overflows or vanishes; the constants are those of A: lambda of A_S^T A_S is 4^e times that of 2^-e A.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._errors import UsageError, check_count
from ...products.sense.op import top_k
from ...support import distinct
from ..arrays import tensor
from ..operators import GatedReLU, Operator
from ..operators.protocol import BLOCK_NUMBERS
from ..operators.scaled import normalised
from ..theory import edge_law, gated_gram, welch
from ..units import times

EXACT = 1 << 14  # supports that are all looked at
PAIRS = 16  # exchanges tried at each step of the search

Columns = Callable[[Operator, Tensor], Tensor]  # unit_columns or plain_columns


class Coherence(NamedTuple):
    """``value``: max |a_i . a_j| / (|a_i| |a_j|), between columns ``pair``; ``welch``: the least that is possible at this size."""

    value: float
    pair: tuple[int, int]
    welch: float


def coherence(A: Any) -> Coherence:
    """Mutual coherence of a matrix or operator, by blocks of columns: m d^2 multiply-adds. Zero columns count for nothing."""
    A, _ = _checked("coherence", A)
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
    swaps; delta_s itself where ``exact``, as all supports were looked at) from below, ``gershgorin`` from above. ``mean`` over the supports
    drawn, ``edge``: the edge law of one Gaussian support."""

    s: int
    mean: float
    sampled: float
    improved: float
    gershgorin: float
    edge: float
    support: Tensor  # where ``improved`` is attained, sorted
    exact: bool

    def __str__(self) -> str:
        bounds = f"{self.improved:.3f} <= delta_{self.s} <= {self.gershgorin:.3f}"
        head = f"delta_{self.s} = {self.improved:.3f}" if self.exact else bounds
        return f"{head} (one random support {self.mean:.3f}, worst drawn {self.sampled:.3f}; edge law {self.edge:.3f})"


def isometry(
    A: Any,
    s: int,
    *,
    normalise: bool = True,
    supports: int = 2000,
    swaps: int = 100,
    starts: int = 10,
    rng: torch.Generator | None = None,
) -> Isometry:
    """Bounds of delta_s. Sampling bounds it from below only: read ``improved`` as "at least", unless ``exact``: where A has no more than
    16,384 supports of s columns (``EXACT``), all of them are looked at.

    Args:
        A: matrix or operator.
        normalise: scale columns to unit norm first; False is the constant of A itself.
        supports: drawn at random; swaps: exchanges of one column tried from each of the ``starts`` worst of them.
        rng: of the supports; None is a fixed seed.

    Raises: UsageError if A is empty or holds NaN or infinities, if it has no s columns, or, to be normalised, has zero columns.
    """
    A, e = _checked("isometry", A, s)
    for name, value, least in (("supports", supports, 1), ("swaps", swaps, 0), ("starts", starts, 0)):
        check_count("isometry", name, value, least)
    norms = A.norms()
    if normalise and not float(norms.min()) > 0:
        remedy = "drop them, or normalise=False for the constant of A as it is"
        raise UsageError("isometry", "A has zero columns, and none of them can be scaled to unit norm", remedy=remedy)
    columns, square = (unit_columns, 1.0) if normalise else (plain_columns, times(1.0, 2 * e))
    drawn = _supports(A.shape[1], s, supports, rng)
    delta = _delta(A, drawn, columns, square)
    best, where = float(delta.max()), drawn[int(delta.argmax())]
    sampled, exact, mean = best, math.comb(A.shape[1], s) <= EXACT, float(delta.mean())
    if exact:
        everything = torch.tensor(list(itertools.combinations(range(A.shape[1]), s)))
        delta = _delta(A, everything, columns, square)
        tries = [(float(delta.max()), everything[int(delta.argmax())])]
    else:
        tries = [_swapped(A, support, swaps, columns, square) for support in _worst(drawn, delta, starts)]
    for found, support in tries:
        if found > best:
            best, where = found, support
    off = 0.0 if normalise else float((norms.double().square() * square - 1).abs().max())
    gershgorin = off + (s - 1) * square * _largest_product(A, columns)[0]
    return Isometry(s, mean, sampled, best, gershgorin, edge_law(s, A.shape[0]), where.sort()[0], exact)


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


def convexity(
    A: Any, s: int, *, generators: Tensor | None = None, supports: int = 200, rng: torch.Generator | None = None
) -> Convexity:
    """alpha and beta of an operator on sampled supports, columns as they are, rows averaged.

    Args:
        generators: h (p, d) of a :class:`GatedReLU`: the population formula (inputs N(0, I), theory.py) is then evaluated too.
        supports: drawn at random; rng: of them, None is a fixed seed.

    Raises: UsageError if A is empty or holds NaN or infinities, has no s columns, or the generators are not those of a GatedReLU.
    """
    gated = A
    A, e = _checked("convexity", A, s)
    check_count("convexity", "supports", supports, 1)
    if generators is not None:
        generators = tensor("convexity", "generators", generators)
        if not isinstance(gated, GatedReLU) or generators.shape != (gated.neurons, gated.features):
            raise UsageError(
                "convexity", "generators belong to a GatedReLU, one row per neuron", got=tuple(generators.shape)
            )
        if not bool(generators.isfinite().all()):
            raise UsageError("convexity", "generators hold entries that are NaN or infinite")
        if not bool((generators != 0).any(1).all()):
            raise UsageError(
                "convexity",
                "a generator is zero: its gate is never open, and it has no direction",
                remedy="drop that neuron",
            )
    drawn = _supports(A.shape[1], s, supports, rng)
    square = times(1.0, 2 * e)
    low, high = (values * (square / A.shape[0]) for values in _edges(A, drawn, plain_columns))
    population: tuple[float | None, float | None, float | None] = (None, None, None)
    if generators is not None and isinstance(gated, GatedReLU):
        grams = [gated_gram(generators, ids // gated.features, ids % gated.features) for ids in drawn]
        values = torch.stack([torch.linalg.eigvalsh(g)[[0, -1]] for g in grams])
        off = max(
            float((_gram(A, ids).double() * square - g).abs().max())
            for ids, g in zip(drawn[:20], grams[:20], strict=True)
        )
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


def _checked(who: str, A: Any, s: int | None = None) -> tuple[Operator, int]:
    """2^-e A, and e."""
    A, e = normalised(who, A)
    if not min(A.shape):
        raise UsageError(who, "A is empty", got=tuple(A.shape))
    if s is not None:
        check_count(who, "s", s, 1)
        if s > A.shape[1]:
            raise UsageError(who, f"A has {A.shape[1]} columns, and no support of {s}")
    return A, e


def _supports(d: int, s: int, count: int, rng: torch.Generator | None) -> Tensor:
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    return torch.stack([distinct(d, s, rng) for _ in range(count)])


def _gram(A: Operator, ids: Tensor) -> Tensor:
    a = A.columns(ids)
    return a.T @ a / A.shape[0]


def _edges(A: Operator, supports: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """Extreme eigenvalues of the Gram matrices of many supports (c, s), float64."""
    m, s = A.shape[0], supports.shape[1]
    low, high = [], []
    for part in supports.to(A.device).split(max(1, BLOCK_NUMBERS // (m * s))):
        a = columns(A, part.flatten()).view(m, *part.shape).permute(1, 0, 2)
        values = torch.linalg.eigvalsh(a.transpose(1, 2) @ a)
        low.append(values[:, 0])
        high.append(values[:, -1])
    return torch.cat(low).double(), torch.cat(high).double()


def _delta(A: Operator, supports: Tensor, columns: Columns, square: float) -> Tensor:
    """||A_S^T A_S - I|| of many supports (c, s); ``square`` times the eigenvalues in units of A are those meant."""
    low, high = _edges(A, supports, columns)
    return torch.maximum(square * high - 1, 1 - square * low)


def _worst(drawn: Tensor, delta: Tensor, starts: int) -> Tensor:
    """The supports of largest delta, no set of columns twice, (k, s)."""
    order = delta.argsort(descending=True, stable=True)
    sets, first = [tuple(row) for row in drawn[order].sort(1)[0].tolist()], {}
    for i, key in enumerate(sets):
        if len(first) == starts:
            break
        first.setdefault(key, i)
    return drawn[order[list(first.values())]]


def _swapped(A: Operator, support: Tensor, swaps: int, columns: Columns, square: float) -> tuple[float, Tensor]:
    """Exchanges one column of S at a time, as long as delta grows: of all pairs (l leaves, j enters) those ``PAIRS`` are tried that promise
    most, whichever extreme eigenvector v they follow. None is chosen by which of two equal numbers came first."""
    support, norms = support.to(A.device), A.norms().double()
    unit = columns is unit_columns
    q = torch.ones_like(norms) if unit else norms.square()
    delta = float(_delta(A, support[None], columns, square))
    gram = torch.stack([_products(A, j, columns, norms) for j in support], 1)  # A^T A_S, (cols, s)
    for _ in range(swaps):
        off = torch.ones_like(norms, dtype=torch.bool).index_fill_(0, support, False).nonzero().flatten()
        if not off.numel():
            break
        promise = _promise(gram, support, q, square)[off]  # (off, s)
        top = top_k(promise.flatten(), min(PAIRS, promise.numel()))
        enters, leaves = off[top // support.numel()], top % support.numel()
        trials = support.repeat(top.numel(), 1).scatter(1, leaves[:, None], enters[:, None])
        found = _delta(A, trials, columns, square)
        k = int(found.argmax())
        if float(found[k]) <= delta * (1 + 1e-9):
            break
        delta, support = float(found[k]), trials[k]
        gram = gram.index_copy(1, leaves[k : k + 1], _products(A, enters[k], columns, norms)[:, None])
    return delta, support.cpu()


def _promise(gram: Tensor, support: Tensor, q: Tensor, square: float) -> Tensor:
    """What delta is at least when column l of S leaves and j enters, (cols, s): from the Ritz values of A_S w and a_j, w the extreme
    eigenvector without l at unit norm: the eigenvalues of [[lam, p], [p, q]], lam = |A_S w|^2, p = a_j . A_S w, q = |a_j|^2."""
    inner = gram[support]
    vectors, best = torch.linalg.eigh((inner + inner.T) / 2)[1], None
    for v in (vectors[:, -1], vectors[:, 0]):
        w = v[:, None].repeat(1, v.numel()).fill_diagonal_(0.0)  # column l: v without l
        length = w.norm(dim=0)
        w = torch.where(length > 1e-6, w / length.clamp_min(1e-6), 0.0)
        lam = torch.where(length > 1e-6, (w * (inner @ w)).sum(0), q[:, None])  # nothing stays: a_j alone
        p = gram @ w
        middle, radius = (lam + q[:, None]) / 2, (((lam - q[:, None]) / 2).square() + p.square()).sqrt()
        promised = torch.maximum(square * (middle + radius) - 1, 1 - square * (middle - radius))
        best = promised if best is None else torch.maximum(best, promised)
    assert best is not None
    return best


def _products(A: Operator, j: Tensor, columns: Columns, norms: Tensor) -> Tensor:
    """A^T a_j, (cols,), float64."""
    p = A.rmatvec(columns(A, j[None])[:, 0]).double()
    return p / norms.where(norms > 0, 1.0) if columns is unit_columns else p
