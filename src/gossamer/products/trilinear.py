"""Products under foreign hands: ``torch.func``, forward-mode differentiation, second derivatives, tracers. Right numbers, not quick ones.

A product is one trilinear form of the output's gradient, the input and the values, and the three kernels are its slopes:

    t(dy, x, v) = sum_b dy_b . (W(v) x_b)
    slot 0      y  = dt/d(dy)  of (x, v)       forward
    slot 1      dx = dt/dx     of (dy, v)      input gradient
    slot 2      dv = dt/dv     of (dy, x)      weight gradient

A slope is linear in both of its arguments, and its derivatives are slopes again, so any derivative of any order is made of the kernels:

    backward    for g in the space of slot k:  d<g, slope_k(a_i, a_j)> / d(a_i) = slope_i(a_j, g)
    forward     slope_k(a_i, a_j)' = slope_k(a_i', a_j) + slope_k(a_i, a_j')
    vmap        values shared: one product of a larger batch; otherwise one product after the other

Who writes down a program that is to run elsewhere (``torch.jit.trace``, ``torch.export``, ONNX) gets torch's own operations instead: values
and index, from which the program makes the dense weight whenever it runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from .._errors import UsageError
from ..support import Support


def as_dense(values: Tensor, s: Support) -> Tensor:
    """The dense matrix (rows, cols), by operations that every tracer and exporter knows: no counting, no size that data decide."""
    (rows, cols), (h, w), grid = s.shape, s.block, s.grid
    tiles = values.new_zeros(*grid, h, w).index_put(
        (s.row.long(), s.col[s.perm.long()].long()), values.view(-1, h, w)[s.perm.long()]
    )
    return tiles.transpose(1, 2).reshape(grid[0] * h, grid[1] * w)[:rows, :cols]


def check_index(who: str, crow: Tensor, col: Tensor) -> None:
    """Refuses an index that is itself followed by a transform: it decides how long loops are, and each model has its own."""
    if is_functorch_wrapped_tensor(col) or is_functorch_wrapped_tensor(crow):
        remedy = "transform the parameters alone; call models of different supports one after the other, or densify(copy.deepcopy(model))"
        raise UsageError(
            who, "torch.func cannot follow the index of a support (crow, col), which is no number", remedy=remedy
        )


@dataclass(frozen=True, eq=False)
class Trilinear:
    """One form, by its slopes: functions of two plain tensors each, (x, v) -> y, (dy, v) -> dx, (dy, x) -> dv."""

    slopes: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]

    def slope(self, slot: int, first: Tensor, second: Tensor) -> Tensor:
        """The slope by one slot at the arguments of the other two, in order; differentiable any number of times, in both modes."""
        return _Slope.apply(first, second, self, slot)  # type: ignore[return-value]

    def gradients(
        self, slot: int, first: Tensor, second: Tensor, g: Tensor, wanted: tuple[bool, bool]
    ) -> list[Tensor | None]:
        """Of <g, slope>, by both arguments, as far as wanted."""
        i, j = (k for k in range(3) if k != slot)
        at = {slot: g, i: first, j: second}
        return [
            self.slope(k, *(at[other] for other in range(3) if other != k)) if w else None
            for k, w in zip((i, j), wanted, strict=True)
        ]


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(first: Tensor, second: Tensor, form: Trilinear, slot: int) -> Tensor:
        y = form.slopes[slot](first, second)
        return y.clone() if y._is_view() else y  # a tangent need not lie as a view does

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        first, second, ctx.form, ctx.slot = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        first, second = ctx.saved_tensors
        return *ctx.form.gradients(ctx.slot, first, second, g, tuple(ctx.needs_input_grad[:2])), None, None

    @staticmethod
    def jvp(ctx: Any, first_t: Tensor | None, second_t: Tensor | None, *_: None) -> Tensor | None:
        (first, second), form, slot = ctx.saved_tensors, ctx.form, ctx.slot
        of_first = None if first_t is None else form.slope(slot, first_t, second)
        of_second = None if second_t is None else form.slope(slot, first, second_t)
        return (
            of_first + of_second
            if of_first is not None and of_second is not None
            else of_second
            if of_first is None
            else of_first
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, first: Tensor, second: Tensor, form: Trilinear, slot: int) -> tuple[Tensor, int]:
        of_first, of_second = in_dims[:2]
        if of_second is None and slot != 2:
            y = form.slope(slot, first.movedim(of_first, 0).flatten(0, 1), second)
            return y.unflatten(0, (info.batch_size, -1)), 0
        pairs = ((_at(first, of_first, k), _at(second, of_second, k)) for k in range(info.batch_size))
        return torch.stack([form.slope(slot, a, b) for a, b in pairs]), 0


def _at(t: Tensor, dim: int | None, k: int) -> Tensor:
    return t if dim is None else t.select(dim, k)
