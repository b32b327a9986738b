"""The fast counterparts of :mod:`.reference`: ``native.hpp`` by way of an extension module. Outputs and input gradients are batch-last."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..._backend.dispatch import Kernel
from ..._backend.native import BEST, COMPUTED, ONE, batch_last, computed, like, reasons_against
from ...support import Support
from .reference import Geometry


def kernels(m: Any, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def forward(x: Tensor, values: Tensor, s: Support, g: Geometry, bias: Tensor | None = None) -> Tensor:
        y = like(x, x.shape[0], s.shape[0], *_out(g, *x.shape[2:]))
        bias = None if bias is None else computed(bias)
        if s.block == ONE:
            m.conv_forward(batch_last(x), computed(values), bias, y, s.crow, s.col, _flat(g), torch.get_num_threads())
        else:
            m.block_forward(
                batch_last(x), computed(values), bias, y, s.crow, s.col, s.block, _flat(g), torch.get_num_threads()
            )
        return y

    def backward(dy: Tensor, x: Tensor, values: Tensor, s: Support, g: Geometry) -> tuple[Tensor, Tensor]:
        weights = computed(values)
        dx, dw = like(dy, *x.shape), torch.empty_like(weights)
        if s.block == ONE:
            m.conv_backward(
                batch_last(dy), batch_last(x), weights, dx, dw, s.ccol, s.row, s.perm, _flat(g), torch.get_num_threads()
            )
        else:
            m.block_backward(
                batch_last(dy),
                batch_last(x),
                weights,
                dx,
                dw,
                s.crow,
                s.col,
                s.block,
                _flat(g),
                torch.get_num_threads(),
            )
        return dx, dw if dw.dtype is values.dtype else dw.to(values.dtype)

    def input_gradient(dy: Tensor, values: Tensor, s: Support, g: Geometry, size: tuple[int, int]) -> Tensor:
        dx = like(dy, dy.shape[0], s.shape[1] // (g.kernel[0] * g.kernel[1]), *size)
        if s.block == ONE:
            m.conv_backward(
                batch_last(dy),
                None,
                computed(values),
                dx,
                None,
                s.ccol,
                s.row,
                s.perm,
                _flat(g),
                torch.get_num_threads(),
            )
        else:
            m.block_backward(
                batch_last(dy),
                None,
                computed(values),
                dx,
                None,
                s.crow,
                s.col,
                s.block,
                _flat(g),
                torch.get_num_threads(),
            )
        return dx

    def weight_gradient(dy: Tensor, x: Tensor, s: Support, g: Geometry) -> Tensor:
        return sampled(m, dy, x, s.crow, s.col, s.block, g)

    functions = (forward, backward, input_gradient, weight_gradient)
    return {f.__name__: Kernel(name, f, reasons_against) for f in functions}


def sampled(m: Any, dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, block: tuple[int, int], g: Geometry) -> Tensor:
    """The kernel's gradient at the blocks of a CSR index, kept or not: images -> (m,) or (m, h, w)."""
    dw = x.new_empty(col.shape if block == ONE else (*col.shape, *block), dtype=COMPUTED[x.dtype])
    if block == ONE:
        m.conv_weight(batch_last(dy), batch_last(x), dw, crow, col, _flat(g), torch.get_num_threads())
    else:
        m.block_backward(
            batch_last(dy), batch_last(x), None, None, dw, crow, col, block, _flat(g), torch.get_num_threads()
        )
    return dw


@lru_cache
def _flat(g: Geometry) -> tuple[int, ...]:
    return tuple(v for pair in g for v in pair)


_out = lru_cache(Geometry.out)


KERNELS = kernels(BEST)
