# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Checked data of the networks, and the signal-to-noise ratio of a prediction."""

import math

import torch
from torch import Tensor

from ..._errors import UsageError
from ..arrays import Array, tensor
from ..units import exponent, shifted


def inputs(who: str, X: object, Y: object) -> tuple[Tensor, Tensor]:
    """Checked data: X (n, d), float32 or float64, and Y (n, k) of the same dtype. Raises UsageError."""
    x, y = tensor(who, "X", X), tensor(who, "Y", Y)
    if y.dim() > 2:
        raise UsageError(who, "targets must be (samples,) or (samples, outputs)", got=tuple(y.shape))
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64) or not x.numel():
        raise UsageError(who, "X must be (samples, features), float32 or float64", got=(tuple(x.shape), x.dtype))
    if len(y) != len(x):
        raise UsageError(who, f"there are {len(x)} samples, but {len(y)} targets")
    for name, t in (("X", x), ("Y", y)):
        if t.is_floating_point() and not bool(t.isfinite().all()):
            raise UsageError(who, f"{name} holds NaN or infinite entries", remedy="drop or impute them")
    return x.detach(), (y[:, None] if y.dim() == 1 else y).detach().to(x.dtype)


def classes_of(who: str, y: Tensor) -> int:
    """Number of classes of the labels 0, 1, .... Raises UsageError."""
    if y.dim() != 1 or y.is_floating_point() or not len(y) or int(y.min()) < 0:
        raise UsageError(who, "labels must be whole numbers 0, 1, ..., one per sample", got=(tuple(y.shape), y.dtype))
    if int(y.min()) == int(y.max()):
        raise UsageError(who, "there is only one class", remedy="give samples of at least two classes")
    return int(y.max()) + 1


def psnr(prediction: Array, target: Array) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10 max |y| - 10 log10 of the mean squared error, for data in any unit."""
    a, y = tensor("psnr", "prediction", prediction).double(), tensor("psnr", "target", target).double()
    e = exponent(y)
    a, y = shifted(a, -e), shifted(y, -e)
    error = float((a - y).square().mean())
    return float(20 * y.abs().max().log10()) - 10 * math.log10(max(error, 1e-300))
