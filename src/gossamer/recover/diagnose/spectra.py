# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportConstantRedefinition=false
"""Eigenvalues of the Gram matrices A_S^T A_S of many supports S."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..operators.protocol import BLOCK_NUMBERS, Operator

Columns = Callable[[Operator, Tensor], Tensor]  # unit_columns or plain_columns


def unit_columns(A: Operator, ids: Tensor) -> Tensor:
    """Columns scaled to unit norm, (m, k). Zero columns are not scaled."""
    a = A.columns(ids)
    norms = torch.linalg.vector_norm(a, dim=0)
    return a / torch.where(norms > 0, norms, 1.0)


def plain_columns(A: Operator, ids: Tensor) -> Tensor:
    """Columns without scaling, (m, k)."""
    return A.columns(ids)


def edges(A: Operator, supports: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """Extreme eigenvalues of the Gram matrices of many supports (c, s), float64."""
    m, s = A.shape[0], supports.shape[1]
    low: list[Tensor] = []
    high: list[Tensor] = []
    for part in torch.split(supports.to(A.device), max(1, BLOCK_NUMBERS // (m * s))):
        a = columns(A, part.flatten()).view(m, *part.shape).permute(1, 0, 2)
        values = torch.linalg.eigvalsh(a.transpose(1, 2) @ a)
        low.append(values[:, 0])
        high.append(values[:, -1])
    return torch.cat(low).double(), torch.cat(high).double()


def deviations(A: Operator, supports: Tensor, columns: Columns, square: float) -> Tensor:
    """||A_S^T A_S - I|| of many supports (c, s), where eigenvalues are multiplied by ``square`` first."""
    low, high = edges(A, supports, columns)
    return torch.maximum(square * high - 1, 1 - square * low)


def gram(A: Operator, ids: Tensor) -> Tensor:
    """A_S^T A_S / m, (s, s)."""
    a = A.columns(ids)
    return a.T @ a / A.shape[0]


def extremes(gram: Tensor) -> tuple[float, float]:
    """The least and the largest eigenvalue of a symmetric matrix."""
    values = torch.linalg.eigvalsh(gram)
    return float(values[0]), float(values[-1])
