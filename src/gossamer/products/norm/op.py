# pyright: strict
"""Batch normalisation of a training step, with or without a ReLU, as one operation on batch-last tensors.

This module chooses the kernel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._backend.dispatch import Kernel, always, choose, is_differentiated_again
from ..._backend.memory import batch_last
from . import native, reference

FORWARD = [native.KERNELS["forward"], Kernel("reference", reference.forward, always)]
BACKWARD = [native.KERNELS["backward"], Kernel("reference", reference.backward, always)]


class Running(NamedTuple):
    """The running statistics, (C,) each, and the weight of the new batch in their update."""

    mean: Tensor
    var: Tensor
    momentum: float


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
    running: Running | None = None,
) -> Tensor:
    """``x`` normalised per channel by its own mean and variance, times ``weight``, plus ``bias``; a ReLU if ``relu``.

    Args:
        x: (N, C, ...), batch-last, float32 or float64, at least two numbers per channel.
        weight: (C,) of the dtype of ``x``; None is 1.
        bias: (C,) of the dtype of ``x``; None is 0.
        eps: added to the variance, positive.
        relu: apply a ReLU to the result.
        running: statistics to update in place, with the mean and the unbiased variance.

    Returns: y like ``x``, batch-last. Differentiable twice.
    """
    return _apply(x, weight, bias, eps, relu, running)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool, running: Running | None
    ) -> Tensor:
        y, mean, invstd = choose(FORWARD, x, weight, bias, eps, relu).run(x, weight, bias, eps, relu)
        if running is not None:
            _update(running, mean, invstd, eps, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.eps, ctx.relu = eps, relu
        return y.detach()  # not a view: the next operation may work in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dy,), (x, weight, bias, mean, invstd) = grads, ctx.saved_tensors
        if is_differentiated_again(dy):
            return *_differentiable(dy, x, weight, bias, ctx.eps, ctx.relu), None, None, None
        args = (batch_last(dy), x, weight, bias, mean, invstd, ctx.relu)
        dx, dweight, dbias = choose(BACKWARD, *args).run(*args)
        return dx, None if weight is None else dweight, None if bias is None else dbias, None, None, None


_apply: Callable[..., Tensor] = _BatchNorm.apply  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _update(running: Running, mean: Tensor, invstd: Tensor, eps: float, count: int) -> None:
    deviation, unbiased = invstd.reciprocal(), count / (count - 1)
    var = torch.full_like(deviation, -unbiased * eps).addcmul_(deviation, deviation, value=unbiased)
    running.mean.lerp_(mean, running.momentum)
    running.var.lerp_(var, running.momentum)


def _differentiable(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients by torch's elementwise operations, with the equations of the reference.

    The statistics are computed from x again.
    """
    others, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    centred, count = x - x.mean(others, keepdim=True), x.numel() // x.shape[1]
    invstd = (centred.square().mean(others, keepdim=True) + eps).rsqrt()
    xhat = centred * invstd
    scale = invstd if weight is None else invstd * weight.view(shape)
    if relu:
        z = xhat if weight is None else xhat * weight.view(shape)
        dy = dy * ((z if bias is None else z + bias.view(shape)) > 0)
    dbias, dweight = dy.sum(others), (dy * xhat).sum(others)
    dx = scale * (dy - dbias.view(shape) / count - xhat * dweight.view(shape) / count)
    return dx, None if weight is None else dweight, None if bias is None else dbias
