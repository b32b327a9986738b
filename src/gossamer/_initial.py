# pyright: strict
"""Initial values of sparse weights (Kaiming, He et al. 2015, with the fan-in scaled by the density).

    w ~ N(0, sd^2)  or  U(-sqrt(3) sd, sqrt(3) sd),      sd = gain sqrt(2 / (density fan_in))

The pre-activations of a sparse layer then have the same variance as those of a dense layer.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from .support import Support

Distribution = Literal["normal", "uniform"]


def kaiming(
    s: Support,
    dtype: torch.dtype,
    rng: torch.Generator | None = None,
    *,
    gain: float = 1.0,
    distribution: Distribution = "normal",
) -> Tensor:
    """Values for the kept blocks of a support, in compact form on the CPU, (n,) or (n, h, w).

    If ``rng`` is None, torch's default generator is used.
    """
    rows, fan_in = s.shape
    density = max(s.weights, 1) / (rows * fan_in)  # at least 1: no division by zero on an empty support
    sd = gain * math.sqrt(2 / (density * fan_in))
    values = torch.empty(s.n, *(() if s.block == (1, 1) else s.block), dtype=dtype)
    if distribution == "normal":
        return values.normal_(0.0, sd, generator=rng)
    bound = sd * math.sqrt(3)
    return values.uniform_(-bound, bound, generator=rng)
