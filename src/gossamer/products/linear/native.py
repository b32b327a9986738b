# pyright: strict
"""The fast counterparts of :mod:`.reference`, in ``native.hpp``, called through an extension module.

Outputs and input gradients are batch-last.
"""

from typing import cast

from torch import Tensor, empty_like, get_num_threads

from ..._backend.dispatch import Kernel
from ..._backend.memory import fast_batch_last, new_batch_last
from ..._backend.native import BEST, COMPUTED, ONE, Build, computed, reasons_against
from ...support import Support


def kernels(m: Build, name: str = "native") -> dict[str, Kernel]:
    """The kernels of one build, by operation."""

    def forward(x: Tensor, values: Tensor, s: Support, bias: Tensor | None = None) -> Tensor:
        y = new_batch_last(x, x.shape[0], s.shape[0])
        operands = (fast_batch_last(x), computed(values), None if bias is None else computed(bias), y, s.crow, s.col)
        if s.block == ONE:
            m.linear_forward(*operands, get_num_threads())
        else:
            m.block_forward(*operands, s.block, (), get_num_threads())
        return y

    def backward(dy: Tensor, x: Tensor, values: Tensor, s: Support) -> tuple[Tensor, Tensor]:
        weights = computed(values)
        dx, dw = new_batch_last(dy, dy.shape[0], s.shape[1]), empty_like(weights)
        _backward(m, dy, fast_batch_last(x), weights, dx, dw, s)
        return dx, dw if dw.dtype is values.dtype else dw.to(values.dtype)

    def input_gradient(dy: Tensor, values: Tensor, s: Support) -> Tensor:
        dx = new_batch_last(dy, dy.shape[0], s.shape[1])
        _backward(m, dy, None, computed(values), dx, None, s)
        return dx

    def weight_gradient(dy: Tensor, x: Tensor, s: Support) -> Tensor:
        return sampled(m, dy, x, s.crow, s.col, s.block)

    functions = (forward, backward, input_gradient, weight_gradient)
    return {f.__name__: Kernel(name, f, reasons_against) for f in functions}


def _backward(
    m: Build, dy: Tensor, x: Tensor | None, values: Tensor, dx: Tensor, dw: Tensor | None, s: Support
) -> None:
    operands = (fast_batch_last(dy), x, values, dx, dw)
    if s.block == ONE:
        m.linear_backward(*operands, s.ccol, s.row, s.perm, get_num_threads())
    else:
        m.block_backward(*operands, s.crow, s.col, s.block, (), get_num_threads())


def sampled(m: Build, dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, block: tuple[int, int]) -> Tensor:
    """dW at the blocks of any CSR index: (B, rows), (B, cols) -> (m,) or (m, h, w)."""
    dw = x.new_empty(col.shape if block == ONE else (*col.shape, *block), dtype=COMPUTED[x.dtype])
    dy, x = fast_batch_last(dy), fast_batch_last(x)
    if block == ONE:  # row i is column i of the transposed problem
        m.linear_backward(x, dy, None, None, dw, crow, col, None, get_num_threads())
    else:
        m.block_backward(dy, x, None, None, dw, crow, col, block, (), get_num_threads())
    return dw


KERNELS = kernels(cast(Build, BEST))  # if BEST is None, their reasons_against is never empty
