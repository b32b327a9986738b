"""Batch normalisation of a training step, with a ReLU or without, as one operation on batch-last tensors; the kernel is chosen here."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..._backend.dispatch import Kernel, always, choose, followed
from ..._backend.memory import batch_last
from . import native, reference

FORWARD = [native.KERNELS["forward"], Kernel("reference", reference.forward, always)]
BACKWARD = [native.KERNELS["backward"], Kernel("reference", reference.backward, always)]


class Running(NamedTuple):
    """The running statistics that a training step moves, (C,) each, and how far."""

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
    """``x`` normalised per channel by its own mean and variance, times ``weight``, plus ``bias``; negative numbers made 0 with ``relu``.

    Args:
        x: (N, C, ...), batch-last, float32 or float64, at least two numbers per channel.
        weight, bias: (C,) of the dtype of ``x``, or None (1 and 0).
        eps: more than 0, added to the variance.
        running: moved in place towards the mean and the unbiased variance.

    Returns: y like ``x``, batch-last. Differentiable, twice if need be.
    """
    return _BatchNorm.apply(x, weight, bias, eps, relu, running)  # type: ignore[return-value]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, relu, running):
        y, mean, invstd = choose(FORWARD, x, weight, bias, eps, relu).run(x, weight, bias, eps, relu)
        if running is not None:
            _move(running, mean, invstd, eps, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.eps, ctx.relu = eps, relu
        return y.detach()  # no view: what follows may work in place

    @staticmethod
    def backward(ctx, dy):
        x, weight, bias, mean, invstd = ctx.saved_tensors
        if followed(dy):
            return *_differentiable(dy, x, weight, bias, ctx.eps, ctx.relu), None, None, None
        args = (batch_last(dy), x, weight, bias, mean, invstd, ctx.relu)
        dx, dweight, dbias = choose(BACKWARD, *args).run(*args)
        return dx, None if weight is None else dweight, None if bias is None else dbias, None, None, None


def _move(running: Running, mean: Tensor, invstd: Tensor, eps: float, count: int) -> None:
    deviation, unbiased = invstd.reciprocal(), count / (count - 1)
    var = torch.full_like(deviation, -unbiased * eps).addcmul_(deviation, deviation, value=unbiased)
    running.mean.lerp_(mean, running.momentum)
    running.var.lerp_(var, running.momentum)


def _differentiable(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients by torch's elementwise operations, the reference's equations line by line, statistics and all made anew from x."""
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
