# pyright: strict, reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""Checks of the estimators' data and settings, and the scaling of columns."""

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from ..._errors import is_real

Numbers = np.ndarray[Any, np.dtype[np.float64]]
FLOOR = 50  # least default number of non-zeros, if the network has as many weights


def validated(estimator: object, X: Any, y: Any, **how: bool) -> tuple[Numbers, Any]:
    """Checked data in double precision. Raises ValueError unless there are two samples, all finite."""
    found: Any = validate_data(estimator, X, y, dtype=np.float64, ensure_min_samples=2, **how)
    return found


def double(array: Any) -> Tensor:
    """A copy of the array as a tensor, float64."""
    return torch.from_numpy(np.array(array, dtype=np.float64, copy=True))


def rms(A: Numbers) -> Numbers:
    """Root mean square of each column. No square overflows or vanishes."""
    top = np.abs(A).max(0)
    top = np.where(top > 0, top, 1.0)
    return top * np.sqrt(((A / top) ** 2).mean(0))


def scaling(X: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of each column; 1 where a column is constant."""
    centre: Numbers = X.mean(0)
    scale = rms(X - centre)
    varies = scale > 1e-12 * np.maximum(np.abs(centre), 1e-300)
    return centre, np.where(varies & (scale > 0), scale, 1.0)


def count(asked: Any, default: int, most: int, described: str, two_layers: bool = False) -> int:
    """Number of non-zeros: ``asked``, or the default. Raises ValueError."""
    if asked is None:
        return min(default, most)
    if not is_real(asked) or asked % 1 or asked < 1:
        raise ValueError(f"n_nonzero must be a whole number of at least 1, or None; got {asked!r}")
    if two_layers and asked < 2:
        raise ValueError(f"n_nonzero={asked} is too few: each of the two layers needs at least one weight")
    if asked > most:
        what = f"n_nonzero={asked} is larger than the number of coefficients"
        raise ValueError(f"{what}: {described} have {most}")
    return int(asked)


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1. Raises ValueError."""
    if not is_real(value) or value % 1 or not value >= 1:
        raise ValueError(f"{name} must be at least 1, a whole number; got {value!r}")
    return int(value)


def check_inflation(value: Any) -> None:
    """Raises ValueError unless ``inflate`` is a number of at least 1."""
    if not is_real(value) or not 1 <= value < math.inf:
        raise ValueError(f"inflate must be at least 1; got {value!r}")
