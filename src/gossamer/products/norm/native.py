# pyright: strict
"""The fast counterparts of :mod:`.reference`, in ``native.hpp``, called through an extension module."""

from typing import Any, cast

import torch
from torch import Tensor, get_num_threads

from ..._backend.dispatch import Kernel
from ..._backend.memory import fast_batch_last, new_batch_last
from ..._backend.native import BEST, Build, why_not
from .reference import Norm


def kernels(m: Build, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool) -> Norm:
        y, (mean, invstd) = new_batch_last(x, *x.shape), x.new_empty(2, x.shape[1])
        m.batch_norm_forward(fast_batch_last(x), weight, bias, eps, relu, y, mean, invstd, get_num_threads())
        return y, mean, invstd

    def backward(
        dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, relu: bool
    ) -> Norm:
        dx, (dweight, dbias) = new_batch_last(x, *x.shape), x.new_empty(2, x.shape[1])
        operands = (fast_batch_last(dy), fast_batch_last(x), weight, bias, mean, invstd, relu)
        m.batch_norm_backward(*operands, dx, dweight, dbias, get_num_threads())
        return dx, dweight, dbias

    return {f.__name__: Kernel(name, f, _reasons_against) for f in (forward, backward)}


def _reasons_against(first: Tensor, second: Tensor | None, third: Tensor | None, *_: Any) -> list[str]:
    reasons = why_not(first, second, third)
    if not reasons and first.dtype not in (torch.float32, torch.float64):
        reasons.append(f"they compute in float32 and float64, not {first.dtype}")
    if first.dim() not in (2, 4):
        reasons.append(f"they take (N, C) and (N, C, H, W), not {first.dim()} dimensions")
    return reasons


KERNELS = kernels(cast(Build, BEST))  # if BEST is None, their reasons_against is never empty
