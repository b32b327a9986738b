"""What the laws share."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-2,
    torch.int64: 0.0,
}  # of kernels' results


def nesterov(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that laws use unless told otherwise: SGD with Nesterov momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def demand(true: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence, unless it is true."""
    if not true:
        raise AssertionError(sentence)


def close(a: Tensor, b: Tensor, sentence: str, tolerance: float = 1e-10) -> None:
    """Demands that two tensors agree to the tolerance, relative to 1 + the largest entry."""
    a, b = a.detach(), b.detach()
    scale, error = (float(t.abs().max()) if t.numel() else 0.0 for t in (b, a - b))
    demand(error <= tolerance * (1 + scale), f"{sentence} (off by {error:.3g})")  # NaN is not <= anything


def uniform(counts: Tensor, draws: int, p: float, sentence: str) -> None:
    """Demands that places drawn ``draws`` times, without replacement and each with probability p, were drawn alike: chi-square, 6 sigma."""
    z = counts.numel()
    chi2 = float(((counts - draws * p) ** 2).sum()) / (draws * p * (1 - p)) * (z - 1) / z
    sigmas = (chi2 - (z - 1)) / math.sqrt(2 * (z - 1))
    demand(sigmas < 6, f"{sentence} (chi-square {chi2:.0f} for {z - 1} degrees of freedom, {sigmas:.0f} sigma)")


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, in nested states."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a, b)
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
