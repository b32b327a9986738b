# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""The quality of a matrix as a measurement.

    coherence     max |a_i . a_j| of unit columns; at least Welch's bound
    isometry      delta_s = max over |S| = s of ||A_S^T A_S - I||, of unit columns or of A without scaling
                  from below: sampled supports, improved by exchanges of one column
                  from above: Gershgorin's max |G_ii - 1| + (s - 1) max |G_ij|, G = A^T A
                  for comparison: the edge law of a single Gaussian support, 2 sqrt(s/m) + s/m
                  exactly: if there are few supports, all of them are computed
    convexity     alpha, beta: extreme eigenvalues of A_S^T A_S / m over sampled supports; for gated ReLUs also those
                  of the population formula

Sampling can show that a matrix is bad, but not that it is good. A is scaled to the order of one, 2^-e A, so that no
square of an entry overflows or underflows. The results are those of A: eigenvalues of A_S^T A_S are 4^e times those of
2^-e A.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._errors import UsageError, check_count
from ...support import distinct
from ..arrays import Array, tensor
from ..operators import GatedReLU, Matrix, Operator
from ..operators.protocol import BLOCK_NUMBERS
from ..operators.scaled import normalised
from ..theory import edge_law, gated_gram, welch
from ..units import times
from .search import swapped, worst
from .spectra import Columns, deviations, edges, extremes, gram, plain_columns, unit_columns

EXACT = 1 << 14  # up to this number of supports, all are computed


class Coherence(NamedTuple):
    """Mutual coherence.

    Attributes:
        value: max |a_i . a_j| / (|a_i| |a_j|).
        pair: the columns of the maximum.
        welch: the smallest possible value for a matrix of this size.
    """

    value: float
    pair: tuple[int, int]
    welch: float


def coherence(A: Matrix) -> Coherence:
    """Mutual coherence of a matrix or operator, by blocks of columns: m d^2 multiply-adds. Zero columns are ignored.

    Raises: UsageError if A is empty or holds NaN or infinities.
    """
    a, _ = _checked("coherence", A)
    return Coherence(*_largest_product(a, unit_columns), welch(*a.shape))


def _largest_product(A: Operator, columns: Columns) -> tuple[float, tuple[int, int]]:
    """max |a_i . a_j| over i != j, and the pair (i, j)."""
    m, d = A.shape
    step, best, pair = max(1, BLOCK_NUMBERS // max(m, d)), 0.0, (0, 0)
    blocks = torch.split(torch.arange(d, device=A.device), step)
    for i, ids in enumerate(blocks):
        left = columns(A, ids)
        for other in blocks[i:]:
            right = left if other is ids else columns(A, other)
            inner = (left.T @ right).abs()
            if other is ids:
                inner.fill_diagonal_(0.0)
            if float(inner.max()) > best:
                best, at = float(inner.max()), int(inner.argmax())
                pair = int(ids[at // inner.shape[1]]), int(other[at % inner.shape[1]])
    return best, pair


class Isometry(NamedTuple):
    """Bounds of the restricted isometry constant delta_s.

    Attributes:
        s: size of the supports.
        mean: mean of ||A_S^T A_S - I|| over the sampled supports.
        sampled: the largest of these values, a bound from below.
        improved: a bound from below after exchanges of columns; delta_s itself if ``exact``.
        gershgorin: a bound from above.
        edge: the edge law of one Gaussian support.
        support: the sorted support of ``improved``.
        exact: whether all supports were computed.
    """

    s: int
    mean: float
    sampled: float
    improved: float
    gershgorin: float
    edge: float
    support: Tensor
    exact: bool

    def __str__(self) -> str:
        bounds = f"{self.improved:.3f} <= delta_{self.s} <= {self.gershgorin:.3f}"
        head = f"delta_{self.s} = {self.improved:.3f}" if self.exact else bounds
        return f"{head} (one random support {self.mean:.3f}, worst drawn {self.sampled:.3f}; edge law {self.edge:.3f})"


def isometry(
    A: Matrix,
    s: int,
    *,
    normalise: bool = True,
    supports: int = 2000,
    swaps: int = 100,
    starts: int = 10,
    rng: torch.Generator | None = None,
) -> Isometry:
    """Bounds of delta_s.

    Sampling gives only a bound from below: delta_s is at least ``improved``. If A has at most 16,384 supports of s
    columns (``EXACT``), all of them are computed, and ``exact`` is True.

    Args:
        A: matrix or operator.
        s: size of the supports.
        normalise: scale columns to unit norm first. False gives the constant of A without scaling.
        supports: number of random supports.
        swaps: largest number of exchanges of one column from each start.
        starts: number of the worst random supports from which exchanges start.
        rng: generator of the supports; None is a fixed seed.

    Raises: UsageError if A is empty or holds NaN or infinities, if it has fewer than s columns, or, with ``normalise``,
    has zero columns.
    """
    a, e = _checked("isometry", A, s)
    for name, value, least in (("supports", supports, 1), ("swaps", swaps, 0), ("starts", starts, 0)):
        check_count("isometry", name, value, least)
    norms = a.norms()
    if normalise and not float(norms.min()) > 0:
        remedy = "drop them, or use normalise=False"
        raise UsageError("isometry", "A has zero columns, which cannot be scaled to unit norm", remedy=remedy)
    columns, square = (unit_columns, 1.0) if normalise else (plain_columns, times(1.0, 2 * e))
    drawn = _supports(a.shape[1], s, supports, rng)
    delta = deviations(a, drawn, columns, square)
    best, where = float(delta.max()), drawn[int(delta.argmax())]
    sampled, exact, mean = best, math.comb(a.shape[1], s) <= EXACT, float(delta.mean())
    if exact:
        everything = torch.tensor(list(itertools.combinations(range(a.shape[1]), s)))
        delta = deviations(a, everything, columns, square)
        tries = [(float(delta.max()), everything[int(delta.argmax())])]
    else:
        tries = [swapped(a, support, swaps, columns, square) for support in worst(drawn, delta, starts)]
    for found, support in tries:
        if found > best:
            best, where = found, support
    off = 0.0 if normalise else float((norms.double().square() * square - 1).abs().max())
    gershgorin = off + (s - 1) * square * _largest_product(a, columns)[0]
    return Isometry(s, mean, sampled, best, gershgorin, edge_law(s, a.shape[0]), where.sort()[0], exact)


class Convexity(NamedTuple):
    """Restricted strong convexity and smoothness over sampled supports.

    Attributes:
        s: size of the supports.
        alpha: smallest eigenvalue of A_S^T A_S / m over all supports.
        beta: largest eigenvalue of A_S^T A_S / m over all supports.
        mean_alpha: mean over the supports of the smallest eigenvalue.
        mean_beta: mean over the supports of the largest eigenvalue.
        population_alpha: alpha by the population formula on the same supports; None without generators.
        population_beta: beta by the population formula on the same supports; None without generators.
        deviation: largest difference between an entry of A_S^T A_S / m and its population value.
    """

    s: int
    alpha: float
    beta: float
    mean_alpha: float
    mean_beta: float
    population_alpha: float | None
    population_beta: float | None
    deviation: float | None

    def __str__(self) -> str:
        text = f"alpha {self.alpha:.3g}, beta {self.beta:.3g} over supports of {self.s}"
        if self.population_alpha is not None:
            text += f" (population: {self.population_alpha:.3g}, {self.population_beta:.3g})"
        return text


def convexity(
    A: Matrix, s: int, *, generators: Array | None = None, supports: int = 200, rng: torch.Generator | None = None
) -> Convexity:
    """alpha and beta of an operator on sampled supports, from columns without scaling.

    Args:
        A: matrix or operator.
        s: size of the supports.
        generators: h (p, d) of a :class:`GatedReLU`. They add the results of the population formula (inputs N(0, I),
            theory.py).
        supports: number of random supports.
        rng: generator of the supports; None is a fixed seed.

    Raises: UsageError if A is empty or holds NaN or infinities, has fewer than s columns, or the generators are not
    those of a GatedReLU.
    """
    a, e = _checked("convexity", A, s)
    check_count("convexity", "supports", supports, 1)
    h = None if generators is None else _generators(A, generators)
    drawn = _supports(a.shape[1], s, supports, rng)
    square = times(1.0, 2 * e)
    low, high = (values * (square / a.shape[0]) for values in edges(a, drawn, plain_columns))
    least, most, off = (None, None, None) if h is None else _population(a, h, drawn, square)
    means = float(low.mean()), float(high.mean())
    return Convexity(s, float(low.min()), float(high.max()), *means, least, most, off)


def _generators(A: Matrix, generators: Array) -> Tensor:
    """The generators (p, d) of a GatedReLU. Raises UsageError."""
    who, h = "convexity", tensor("convexity", "generators", generators)
    if not isinstance(A, GatedReLU) or h.shape != (A.neurons, A.features):
        raise UsageError(who, "generators must be those of a GatedReLU, one row per neuron", got=tuple(h.shape))
    if not bool(h.isfinite().all()):
        raise UsageError(who, "generators hold entries that are NaN or infinite")
    if not bool((h != 0).any(1).all()):
        what = "a generator is zero: its gate is never open, and it has no direction"
        raise UsageError(who, what, remedy="drop that neuron")
    return h


def _population(A: Operator, h: Tensor, drawn: Tensor, square: float) -> tuple[float, float, float]:
    """alpha and beta of the population formula on the sampled supports, and the deviation from it on 20 of them."""
    d = h.shape[1]
    grams = [gated_gram(h, ids // d, ids % d) for ids in drawn]
    values = [extremes(g) for g in grams]
    pairs = zip(drawn[:20], grams[:20], strict=True)
    off = max(float((gram(A, ids).double() * square - g).abs().max()) for ids, g in pairs)
    return min(low for low, _ in values), max(high for _, high in values), off


def _checked(who: str, A: Matrix, s: int | None = None) -> tuple[Operator, int]:
    """2^-e A, and e. Raises UsageError."""
    a, e = normalised(who, A)
    if not min(a.shape):
        raise UsageError(who, "A is empty", got=tuple(a.shape))
    if s is not None:
        check_count(who, "s", s, 1)
        if s > a.shape[1]:
            raise UsageError(who, f"A has only {a.shape[1]} columns, and no support of {s}")
    return a, e


def _supports(d: int, s: int, count: int, rng: torch.Generator | None) -> Tensor:
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    return torch.stack([distinct(d, s, rng) for _ in range(count)])
