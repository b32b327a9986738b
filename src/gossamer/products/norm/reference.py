# pyright: strict
"""Batch normalisation by the statistics of the batch, with or without a ReLU, on batch-last tensors: the reference.

For each channel, over its M numbers x (batch and pixels: a row of the matrix (C, M), the batch-last tensor in memory):

    forward     mean = sum x / M     invstd = 1 / sqrt(sum (x - mean)^2 / M + eps)
                xhat = (x - mean) invstd     z = weight xhat + bias     y = max(z, 0) with the ReLU, else z
    backward    dz = dy where z > 0 with the ReLU, else dy
                dbias = sum dz     dweight = sum dz xhat
                dx = weight invstd (dz - dbias / M - xhat dweight / M)

A missing weight counts as 1, a missing bias as 0. The backward pass keeps only x and the numbers per channel. It
computes z again from x by the operations of the forward pass, z = x scale + shift.
"""

import torch
from torch import Tensor

from ..._backend.memory import from_rows, rows

Norm = tuple[Tensor, Tensor, Tensor]


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool) -> Norm:
    """(N, C, ...) batch-last, (C,), (C,) -> y like x, mean and invstd (C,)."""
    y, mean, invstd = torch.native_batch_norm(rows(x)[None], weight, bias, None, None, True, 0.0, eps)
    if relu:
        y.relu_()
    return from_rows(y[0], x.shape), mean, invstd


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, relu: bool
) -> Norm:
    """dy, x (N, C, ...), both batch-last, the others (C,) -> dx like x, dweight and dbias (C,), also without weight or
    bias."""
    dz, flat = rows(dy), rows(x)
    if relu:
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        z = (flat * scale[:, None]).add_(shift[:, None])  # (C, M)
        dz = torch.ops.aten.threshold_backward.grad_input(
            dz, z, 0.0, grad_input=z
        )  # dy where z > 0, in the memory of z
    where = (None, None, mean, invstd, True, 0.0, [True, True, True])  # eps is part of invstd
    grads = torch.ops.aten.native_batch_norm_backward(dz[None], flat[None], weight, *where)
    return from_rows(grads[0][0], x.shape), grads[1], grads[2]
