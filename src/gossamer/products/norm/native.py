"""The fast counterparts of :mod:`.reference`: ``native.hpp`` by way of an extension module."""

from typing import Any

import torch
from torch import Tensor

from ..._backend.dispatch import Kernel
from ..._backend.native import BEST, batch_last, like, why_not


def kernels(m: Any, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, (mean, invstd) = like(x, *x.shape), x.new_empty(2, x.shape[1])
        m.batch_norm_forward(batch_last(x), weight, bias, eps, relu, y, mean, invstd, torch.get_num_threads())
        return y, mean, invstd

    def backward(
        dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, (dweight, dbias) = like(x, *x.shape), x.new_empty(2, x.shape[1])
        threads = torch.get_num_threads()
        m.batch_norm_backward(
            batch_last(dy), batch_last(x), weight, bias, mean, invstd, relu, dx, dweight, dbias, threads
        )
        return dx, dweight, dbias

    return {f.__name__: Kernel(name, f, _unfit) for f in (forward, backward)}


def _unfit(first: Tensor, second: Tensor | None, third: Tensor | None, *_: Any) -> list[str]:
    reasons = why_not(first, second, third)
    if not reasons and first.dtype not in (torch.float32, torch.float64):
        reasons.append(f"they know float32 and float64, not {first.dtype}")
    return (
        reasons
        if first.dim() in (2, 4)
        else [*reasons, f"they know (N, C) and (N, C, H, W), not {first.dim()} dimensions"]
    )


KERNELS = kernels(BEST)
