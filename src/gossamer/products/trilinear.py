# pyright: strict
"""Derivatives of products, for ``torch.func``, forward mode, second derivatives and tracers. Not optimised for speed.

A product is one trilinear form of the output's gradient, the input and the values. The three kernels are its slopes:

    t(dy, x, v) = sum_b dy_b . (W(v) x_b)
    slot 0      y  = dt/d(dy)  of (x, v)       forward
    slot 1      dx = dt/dx     of (dy, v)      input gradient
    slot 2      dv = dt/dv     of (dy, x)      weight gradient

A slope is linear in both of its arguments. Its derivatives are slopes again, so the kernels give every derivative of
any order:

    backward    for g in the space of slot k:  d<g, slope_k(a_i, a_j)> / d(a_i) = slope_i(a_j, g)
    forward     slope_k(a_i, a_j)' = slope_k(a_i', a_j) + slope_k(a_i, a_j')
    vmap        shared values: one product of a larger batch; otherwise one product after the other

A program that is recorded to run elsewhere (``torch.jit.trace``, ``torch.export``, ONNX) consists of torch's operations
instead. It holds values and index, and makes the dense weight at each run (:func:`as_dense`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._backend.private_torch import is_wrapped
from .._errors import UsageError
from ..support import Support


def as_dense(values: Tensor, s: Support) -> Tensor:
    """The dense matrix (rows, cols), by operations that every tracer and exporter supports.

    No size depends on the data.
    """
    (rows, cols), (h, w), grid, perm = s.shape, s.block, s.grid, s.perm.long()
    places = (s.row.long(), s.col[perm].long())
    tiles = values.new_zeros(*grid, h, w).index_put(places, values.view(-1, h, w)[perm])
    return tiles.transpose(1, 2).reshape(grid[0] * h, grid[1] * w)[:rows, :cols]


def check_index(who: str, crow: Tensor, col: Tensor) -> None:
    """Raises UsageError if a transform has wrapped the index.

    The index determines the length of loops, and differs between models.
    """
    if is_wrapped(col) or is_wrapped(crow):
        what = "torch.func cannot follow the index of a support (crow, col)"
        one_by_one = "call models of different supports one after the other"
        remedy = f"transform only the parameters; {one_by_one}, or use densify(copy.deepcopy(model))"
        raise UsageError(who, what, remedy=remedy)


@dataclass(frozen=True, eq=False)
class Trilinear:
    """A trilinear form, given by its three slopes: (x, v) -> y, (dy, v) -> dx, (dy, x) -> dv, on plain tensors."""

    slopes: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]

    def slope(self, slot: int, first: Tensor, second: Tensor) -> Tensor:
        """The slope of one slot, at the arguments of the other two slots in order.

        It can be differentiated any number of times, in both modes.
        """
        return _apply(first, second, self, slot)

    def gradients(
        self, slot: int, first: Tensor, second: Tensor, g: Tensor, wanted: tuple[bool, bool]
    ) -> list[Tensor | None]:
        """The gradients of <g, slope> with respect to its two arguments; None if not requested."""
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
        return y if y._base is None else y.clone()  # a tangent may have other strides than a view

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        first, second, ctx.form, ctx.slot = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        first, second = ctx.saved_tensors
        return *ctx.form.gradients(ctx.slot, first, second, grads[0], tuple(ctx.needs_input_grad[:2])), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        (first_t, second_t, *_), (first, second), form, slot = tangents, ctx.saved_tensors, ctx.form, ctx.slot
        of_first = None if first_t is None else form.slope(slot, first_t, second)
        of_second = None if second_t is None else form.slope(slot, first, second_t)
        if of_first is None or of_second is None:
            return of_second if of_first is None else of_first
        return of_first + of_second

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        (first, second, form, slot), (of_first, of_second, *_) = args, in_dims
        if of_second is None and slot != 2:
            y = form.slope(slot, first.movedim(of_first, 0).flatten(0, 1), second)
            return y.view(info.batch_size, -1, *y.shape[1:]), 0
        pairs = ((_at(first, of_first, k), _at(second, of_second, k)) for k in range(info.batch_size))
        return torch.stack([form.slope(slot, a, b) for a, b in pairs]), 0


_apply: Callable[..., Tensor] = _Slope.apply  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _at(t: Tensor, dim: int | None, k: int) -> Tensor:
    return t if dim is None else t.select(dim, k)
