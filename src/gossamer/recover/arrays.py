# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Conversion of arguments to tensors: from tensors, NumPy arrays, and SciPy's sparse matrices (made dense)."""

from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .._errors import UsageError


class SparseArray(Protocol):
    """The part of SciPy's sparse matrices and arrays that is used here."""

    def toarray(self) -> Any:  # an array of NumPy, of any dtype
        """The same matrix as an array of NumPy."""
        ...


Array: TypeAlias = Tensor | np.ndarray[Any, Any] | SparseArray


def tensor(who: str, name: str, a: object) -> Tensor:
    """``a`` as a tensor of the same precision. Arrays that torch can share are not copied.

    Args:
        who: the calling function, for messages.
        name: the name of the argument, for messages.
        a: a tensor, a NumPy array or a sparse matrix of SciPy.

    Raises: UsageError for any other object.
    """
    if isinstance(a, Tensor):
        if a.layout != torch.strided:
            remedy = f"{name}.to_dense(), or a sparse matrix of SciPy"
            raise UsageError(who, f"{name} is a sparse tensor", got=a.layout, remedy=remedy)
        return a
    array = a.toarray() if is_sparse(a) else a
    if isinstance(array, np.ma.MaskedArray):
        what = f"{name} is a masked array, and its masked entries would be used as numbers"
        raise UsageError(who, what, remedy=f"drop or impute those entries of {name}")
    if not isinstance(array, np.ndarray):
        what = f"{name} must be a tensor, a NumPy array or a sparse matrix of SciPy"
        remedy = "convert it by torch.as_tensor or numpy.asarray, a data frame by to_numpy()"
        raise UsageError(who, what, got=type(a).__name__, remedy=remedy)
    return _shared(who, name, np.asarray(array))  # pyright: ignore[reportUnknownArgumentType]


def _shared(who: str, name: str, array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor. They share memory if torch supports it."""
    if array.dtype.kind not in "fiubc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        what = f"{name} must have a dtype that torch supports"
        raise UsageError(who, what, got=array.dtype, remedy="astype(numpy.float64)")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    fit = array.flags.writeable and all(step >= 0 for step in array.strides)
    return torch.from_numpy(array if fit else array.copy())


def vector(who: str, name: str, a: object) -> Tensor:
    """As :func:`tensor`, but a sparse matrix of one row or one column becomes a vector."""
    t = tensor(who, name, a)
    return t.flatten() if is_sparse(a) and t.dim() == 2 and 1 in t.shape else t


def norm(t: Tensor) -> float:
    """Euclidean norm of all entries."""
    return float(torch.linalg.vector_norm(t))


def unique(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ids, sorted, and the position of every id among them; both int64."""
    return torch.unique(ids, return_inverse=True)


def is_sparse(a: object) -> TypeGuard[SparseArray]:
    """Whether ``a`` is a sparse matrix or array of SciPy. This does not import SciPy."""
    return type(a).__module__.startswith("scipy.sparse") and callable(getattr(a, "toarray", None))
