# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportConstantRedefinition=false
"""Local search for the support of largest ||A_S^T A_S - I||: exchanges of one column."""

import math

import torch
from torch import Tensor

from ...products.sense.op import top_k
from ..operators.protocol import Operator
from .spectra import Columns, deviations, unit_columns

PAIRS = 16  # exchanges tried at each step of the search


def worst(drawn: Tensor, deltas: Tensor, starts: int) -> Tensor:
    """The supports of largest delta, no set of columns twice, (k, s)."""
    order = deltas.argsort(descending=True, stable=True)
    rows: list[list[int]] = drawn[order].sort(1)[0].tolist()
    sets, first = [tuple(row) for row in rows], dict[tuple[int, ...], int]()
    for i, key in enumerate(sets):
        if len(first) == starts:
            break
        first.setdefault(key, i)
    return drawn[order[list(first.values())]]


def swapped(A: Operator, support: Tensor, swaps: int, columns: Columns, square: float) -> tuple[float, Tensor]:
    """Exchanges one column of S at a time, as long as delta grows.

    Of all pairs (l leaves, j enters) the ``PAIRS`` with the largest bounds are tried, for both extreme eigenvectors.
    """
    support, norms = support.to(A.device), A.norms().double()
    unit = columns is unit_columns
    q = torch.ones_like(norms) if unit else norms.square()
    largest = float(deviations(A, support[None], columns, square)[0])
    gram = torch.stack([_products(A, j, columns, norms) for j in support], 1)  # A^T A_S, (cols, s)
    for _ in range(swaps):
        off = torch.ones_like(norms, dtype=torch.bool).index_fill_(0, support, False).nonzero().flatten()
        if not off.numel():
            break
        promise = _promise(gram, support, q, square)[off]  # (off, s)
        top = top_k(promise.flatten(), min(PAIRS, promise.numel()))
        enters, leaves = off[top // support.numel()], top % support.numel()
        trials = support.repeat(top.numel(), 1).scatter(1, leaves[:, None], enters[:, None])
        found = deviations(A, trials, columns, square)
        k = int(found.argmax())
        if float(found[k]) <= largest * (1 + 1e-9):
            break
        largest, support = float(found[k]), trials[k]
        gram = gram.index_copy(1, leaves[k : k + 1], _products(A, enters[k], columns, norms)[:, None])
    return largest, support.cpu()


def _promise(gram: Tensor, support: Tensor, q: Tensor, square: float) -> Tensor:
    """A bound from below of delta when column l of S leaves and j enters, (cols, s).

    It follows from the Ritz values of A_S w and a_j, where w is an extreme eigenvector without l, at unit norm: the
    eigenvalues of [[lam, p], [p, q]], lam = |A_S w|^2, p = a_j . A_S w, q = |a_j|^2.
    """
    inner = gram[support]
    vectors, best = _eigenvectors((inner + inner.T) / 2), torch.full_like(gram, -math.inf)
    for v in (vectors[:, -1], vectors[:, 0]):
        w = v[:, None].repeat(1, v.numel()).fill_diagonal_(0.0)  # column l: v without l
        length = torch.linalg.vector_norm(w, dim=0)
        w = torch.where(length > 1e-6, w / length.clamp_min(1e-6), 0.0)
        lam = torch.where(length > 1e-6, (w * (inner @ w)).sum(0), q[:, None])  # S = {l}: only a_j is left
        p = gram @ w
        middle, radius = (lam + q[:, None]) / 2, (((lam - q[:, None]) / 2).square() + p.square()).sqrt()
        promised = torch.maximum(square * (middle + radius) - 1, 1 - square * (middle - radius))
        best = torch.maximum(best, promised)
    return best


def _eigenvectors(gram: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix as columns, in order of the eigenvalues."""
    return torch.linalg.eigh(gram)[1]


def _products(A: Operator, j: Tensor, columns: Columns, norms: Tensor) -> Tensor:
    """A^T a_j, (cols,), float64."""
    p = A.rmatvec(columns(A, j[None])[:, 0]).double()
    return p / norms.where(norms > 0, 1.0) if columns is unit_columns else p
