"""The fast counterparts of :mod:`.reference`: ``native.hpp`` by way of an extension module. Outputs and input gradients are batch-last."""

from typing import Any

import torch
from torch import Tensor

from ..._backend.dispatch import Kernel
from ..._backend.native import BEST, COMPUTED, ONE, batch_last, computed, like, reasons_against
from ...support import Support


def kernels(m: Any, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def forward(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
        y = like(x, x.shape[0], s.shape[0])
        bias = None if bias is None else computed(bias)
        if s.block == ONE:
            m.linear_forward(batch_last(x), computed(values), bias, y, s.crow, s.col, torch.get_num_threads())
        else:
            m.block_forward(
                batch_last(x), computed(values), bias, y, s.crow, s.col, s.block, (), torch.get_num_threads()
            )
        return y

    def backward(dy: Tensor, x: Tensor, values: Tensor, s: Support) -> tuple[Tensor, Tensor]:
        weights = computed(values)
        dx, dw = like(dy, dy.shape[0], s.shape[1]), torch.empty_like(weights)
        if s.block == ONE:
            m.linear_backward(
                batch_last(dy), batch_last(x), weights, dx, dw, s.ccol, s.row, s.perm, torch.get_num_threads()
            )
        else:
            m.block_backward(
                batch_last(dy), batch_last(x), weights, dx, dw, s.crow, s.col, s.block, (), torch.get_num_threads()
            )
        return dx, dw if dw.dtype is values.dtype else dw.to(values.dtype)

    def input_gradient(dy: Tensor, values: Tensor, s: Support) -> Tensor:
        dx = like(dy, dy.shape[0], s.shape[1])
        if s.block == ONE:
            m.linear_backward(
                batch_last(dy), None, computed(values), dx, None, s.ccol, s.row, s.perm, torch.get_num_threads()
            )
        else:
            m.block_backward(
                batch_last(dy), None, computed(values), dx, None, s.crow, s.col, s.block, (), torch.get_num_threads()
            )
        return dx

    def weight_gradient(dy: Tensor, x: Tensor, s: Support) -> Tensor:
        return sampled(m, dy, x, s.crow, s.col, s.block)

    functions = (forward, backward, input_gradient, weight_gradient)
    return {f.__name__: Kernel(name, f, reasons_against) for f in functions}


def sampled(m: Any, dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, block: tuple[int, int]) -> Tensor:
    """dW at the blocks of a CSR index, kept or not: (B, rows), (B, cols) -> (m,) or (m, h, w)."""
    dw = x.new_empty(col.shape if block == ONE else (*col.shape, *block), dtype=COMPUTED[x.dtype])
    if block == ONE:  # row i is column i of the transposed problem
        m.linear_backward(batch_last(x), batch_last(dy), None, None, dw, crow, col, None, torch.get_num_threads())
    else:
        m.block_backward(batch_last(dy), batch_last(x), None, None, dw, crow, col, block, (), torch.get_num_threads())
    return dw


KERNELS = kernels(BEST)
