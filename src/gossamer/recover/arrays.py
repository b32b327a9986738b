"""What the public functions take for a tensor: tensors, NumPy arrays, and sparse matrices of SciPy, which are written out."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._errors import UsageError


def tensor(who: str, name: str, a: Any) -> Tensor:
    """``a`` as a tensor of its own precision. Arrays that torch can share are not copied. Raises UsageError for anything else."""
    if isinstance(a, Tensor):
        if a.layout != torch.strided:
            raise UsageError(
                who,
                f"{name} is a sparse tensor",
                got=a.layout,
                remedy=f"{name}.to_dense(), or a sparse matrix of SciPy",
            )
        return a
    if is_sparse(a):
        a = a.toarray()
    if isinstance(a, np.ma.MaskedArray):
        raise UsageError(
            who,
            f"{name} is a masked array, and what is masked would count",
            remedy=f"drop or impute those entries of {name}",
        )
    if not isinstance(a, np.ndarray):
        remedy = "torch.as_tensor or numpy.asarray makes one; a data frame has to_numpy()"
        raise UsageError(
            who,
            f"{name} must be a tensor, a NumPy array or a sparse matrix of SciPy",
            got=type(a).__name__,
            remedy=remedy,
        )
    array = np.asarray(a)
    if array.dtype.kind not in "fiubc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise UsageError(
            who, f"{name} must hold numbers that torch knows", got=array.dtype, remedy="astype(numpy.float64)"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    fit = array.flags.writeable and all(step >= 0 for step in array.strides)
    return torch.from_numpy(array if fit else array.copy())


def vector(who: str, name: str, a: Any) -> Tensor:
    """As :func:`tensor`; a sparse matrix of one row or one column is a vector."""
    t = tensor(who, name, a)
    return t.flatten() if is_sparse(a) and t.dim() == 2 and 1 in t.shape else t


def is_sparse(a: Any) -> bool:
    """Whether it is a sparse matrix or array of SciPy, without importing SciPy."""
    return type(a).__module__.startswith("scipy.sparse") and callable(getattr(a, "toarray", None))
