# pyright: strict
"""New initial values for the sparse layers of a model."""

import math
from typing import get_args

import torch
from torch import nn

from .._errors import UsageError, check_choice
from .._initial import Distribution, kaiming
from ..layers import sparse_layers


def reinitialise_(
    model: nn.Module,
    *,
    distribution: Distribution = "normal",
    gain: float = 1.0,
    positive_bias: float | None = None,
    rng: torch.Generator | None = None,
) -> nn.Module:
    """Draws new values for the sparse layers of a model.

    The variance is gain^2 2 / (density fan_in). With gain 1 it keeps the variance of the activations.

    Args:
        model: a model with sparse layers.
        distribution: ``"normal"`` or ``"uniform"``.
        gain: factor on the values.
        positive_bias: draws the biases of sparse layers uniformly from [0, positive_bias / sqrt(fan_in)]. Neurons with
            few non-zero weights are then active at the start (Bungert et al. 2022). None does not change biases.
        rng: generator; None is torch's default generator.

    Returns: the model.
    """
    who = "reinitialise_"
    check_choice(who, "distribution", distribution, get_args(Distribution))
    if not gain > 0.0 or (positive_bias is not None and not positive_bias >= 0.0):
        raise UsageError(who, "gain must be positive and positive_bias at least 0", got=(gain, positive_bias))
    for layer in sparse_layers(model).values():
        values = kaiming(layer.support, layer.values.dtype, rng, gain=gain, distribution=distribution)
        layer.set_values_(values.to(layer.values.device))
        if positive_bias is not None and layer.bias is not None:
            bound = positive_bias / math.sqrt(layer.support.shape[1])
            drawn = torch.empty(layer.bias.shape, dtype=layer.bias.dtype).uniform_(0.0, bound, generator=rng)
            with torch.no_grad():
                layer.bias.copy_(drawn)
    return model
