"""The functions that the laws share: demands with a sentence, tolerances, comparison of nested states."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]  # parameters -> optimizer

TOLERANCE = {  # for results of kernels, relative to 1 + the largest entry
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-2,
    torch.int64: 0.0,
}


def nesterov(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The default optimizer of the laws: SGD with Nesterov momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def demand(true: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence unless ``true``."""
    if not true:
        raise AssertionError(sentence)


def close(a: Tensor, b: Tensor, sentence: str, tolerance: float = 1e-10) -> None:
    """Demands that two tensors agree to the tolerance, relative to 1 + the largest entry of ``b``."""
    a, b = a.detach(), b.detach()
    scale, error = (float(t.abs().max()) if t.numel() else 0.0 for t in (b, a - b))
    demand(error <= tolerance * (1 + scale), f"{sentence} (off by {error:.3g})")  # NaN compares as False


def uniform(counts: Tensor, draws: int, p: float, sentence: str) -> None:
    """Demands that all places were drawn equally often: chi-square test, 6 sigma.

    Args:
        counts: number of draws of each place.
        draws: number of draws, each without replacement.
        p: probability of each place in one draw.
        sentence: the demand, for the message.
    """
    z = counts.numel()
    chi2 = float(((counts - draws * p) ** 2).sum()) / (draws * p * (1 - p)) * (z - 1) / z
    sigmas = (chi2 - (z - 1)) / math.sqrt(2 * (z - 1))
    demand(sigmas < 6, f"{sentence} (chi-square {chi2:.0f} for {z - 1} degrees of freedom, {sigmas:.0f} sigma)")


def same(a: object, b: object) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        mine, theirs = cast("dict[object, object]", a), cast("dict[object, object]", b)
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        one, other = cast("Sequence[object]", a), cast("Sequence[object]", b)
        return len(one) == len(other) and all(map(same, one, other))
    return a == b
