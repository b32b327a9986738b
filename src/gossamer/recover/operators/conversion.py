# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
"""Conversion of matrices and of SciPy's operators to :class:`Operator`, and from there to SciPy."""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..._errors import UsageError
from ..arrays import Array, is_sparse, tensor
from .dense import Dense
from .from_scipy import FromSciPy, Products, numpy_type
from .protocol import Operator

Matrix: TypeAlias = Operator | Array | Products


def operator(A: object, who: str = "operator") -> Operator:
    """A as an operator.

    An operator is returned unchanged. A tensor or an array becomes :class:`Dense`. A sparse matrix of SciPy, or an
    object with ``matvec`` and ``rmatvec``, becomes :class:`FromSciPy`.

    Raises: UsageError for any other object, with the name ``who``.
    """
    if isinstance(A, Operator):
        return A
    if isinstance(A, (Tensor, np.ndarray)):
        return Dense(tensor(who, "A", A))  # pyright: ignore[reportUnknownArgumentType]
    if is_sparse(A) or (callable(getattr(A, "matvec", None)) and callable(getattr(A, "rmatvec", None))):
        return FromSciPy(A)
    what = "A must be a matrix (tensor or array), an Operator, or a SciPy LinearOperator"
    raise UsageError(who, what, got=type(A).__name__, remedy="convert a data frame by to_numpy()")


def to_scipy(A: Matrix) -> Any:
    """The operator or matrix as a ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors."""
    from scipy.sparse.linalg import LinearOperator

    made = operator(A, "to_scipy")

    def numbers(v: Any) -> Tensor:  # SciPy gives arrays and matrices of several kinds
        return torch.as_tensor(np.ascontiguousarray(v).ravel(), dtype=made.dtype, device=made.device)

    def matvec(v: Any) -> Any:
        return made.matvec(numbers(v)).cpu().numpy()

    def rmatvec(v: Any) -> Any:
        return made.rmatvec(numbers(v)).cpu().numpy()

    make: Any = LinearOperator  # SciPy has no types
    return make(shape=made.shape, matvec=matvec, rmatvec=rmatvec, dtype=numpy_type(made.dtype))
