"""No penalty: R(w) = 0, prox(u, tau) = u."""

# pyright: strict

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .protocol import Tau, Taus


@dataclass(frozen=True)
class Zero:
    """No penalty. It is used for biases and normalisation."""

    convex: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def value(self, w: Tensor) -> Tensor:
        return w.new_zeros(())

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        return u.clone()

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        return list(us)

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        return torch.full_like(u, math.inf)

    def subgradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def problems(self, shape: Sequence[int]) -> list[str]:
        return []
