"""The fine step of :class:`~gossamer.Multilevel` for one layer. It computes and uses the dense gradient a slice of rows
at a time.

    g = dL/dw everywhere;      v <- v - s g;       w <- prox_{delta J}(delta v);   S <- supp w
"""

# pyright: strict

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import SparseLayer
from ..products.sense import op as sense_op
from ..rules.latent import ALMOST
from ..rules.rule import MirrorRule, State, StepInfo
from .ranks import mean_over_ranks

SLICE_NUMBERS = 1 << 22  # most numbers in one slice of the dense gradient
Pairs = list[tuple[Tensor, Tensor]]  # (dy, x) of each backward pass of a layer


class Shown(NamedTuple):
    """The weights after a fine step."""

    ids: Tensor  # flat indices of the weights that are not zero, sorted, (n,) int64
    w: Tensor  # their values, (n,)
    kept: int  # the number of these weights that were on the support before


def fine_step(
    layer: SparseLayer,
    rule: MirrorRule,
    cold: Mapping[str, Tensor],
    pairs: Pairs,
    step: StepInfo,
    *,
    weight_decay: float,
    scale: float,
) -> Shown:
    """One fine step of a layer. Changes ``cold`` in place, and does not change the layer.

    Args:
        cold: the rule's state of all weights, each entry (rows, cols).
        pairs: (dy, x) of each backward pass.
        weight_decay: times the weight, added to the gradient.
        scale: factor on the step of the weights off the support.
    """
    s, kept = layer.support, 0
    old = s.ids()
    ids: list[Tensor] = []
    shown: list[Tensor] = []
    for rows in row_slices(s.shape):
        first = rows.start * s.shape[1]
        start, stop = int(s.crow[rows.start]), int(s.crow[rows.stop])
        on = old[start:stop] - first  # the support in these rows, as flat indices of the slice
        g = mean_over_ranks(sense_op.gradient_rows(pairs, rows, s, layer.geometry))
        if weight_decay:
            g.view(-1)[on] += weight_decay * layer.values[start:stop]
        state = {key: [t[rows]] for key, t in cold.items()}
        _descend_(rule, g, state, step, on, scale)
        v = state["v"][0].view(-1)
        kept += int(_weights(rule, v[on], step).count_nonzero())
        bound = ALMOST * step.strength  # with a margin for rounding: below the bound w is certainly zero
        found = (rule.zero_thresholds([g], state, step)[0] > bound).view(-1).nonzero().flatten()
        w = _weights(rule, v[found], step)
        ids.append(found[w != 0] + first)
        shown.append(w[w != 0])
    return Shown(torch.cat(ids), torch.cat(shown), kept)


def _descend_(rule: MirrorRule, g: Tensor, state: State, step: StepInfo, on: Tensor, scale: float) -> None:
    """The step of the mirror variable in some rows, multiplied by ``scale`` except at the flat indices ``on``."""
    if scale == 1.0:
        rule.descend_([g], state, step)
        return
    v = state["v"][0]
    before = v.clone()
    rule.descend_([g], state, step)
    on_support = v.view(-1)[on].clone()
    v.sub_(before).mul_(scale).add_(before)
    v.view(-1)[on] = on_support


def _weights(rule: MirrorRule, v: Tensor, step: StepInfo) -> Tensor:
    """The weights that belong to entries of the mirror variable."""
    w = torch.empty_like(v)
    rule.show_([w], {"v": [v]}, step)
    return w


def gradient_is_finite(layer: SparseLayer, pairs: Pairs) -> bool:
    """Whether the dense gradient is finite. A bound decides, or the gradient itself if the bound is too large."""
    full = [(dy, x) for dy, x in pairs if dy.numel() and x.numel()]
    bound = sum(float(dy.abs().max()) * float(x.abs().max()) * dy.numel() for dy, x in full)
    if bound < torch.finfo(layer.values.dtype).max:
        return True
    if not all(bool(t.isfinite().all()) for pair in pairs for t in pair):
        return False
    s, geometry = layer.support, layer.geometry
    made = (sense_op.gradient_rows(pairs, rows, s, geometry) for rows in row_slices(s.shape))
    return all(bool(g.isfinite().all()) for g in made)


def row_slices(shape: tuple[int, int]) -> list[slice]:
    """The rows of a matrix, in slices of at most SLICE_NUMBERS numbers, but at least one row."""
    rows, cols = shape
    step = max(1, SLICE_NUMBERS // cols)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def slice_bytes(layer: SparseLayer) -> int:
    """Bytes of a slice of the dense gradient, and of a copy of it."""
    return 2 * min(SLICE_NUMBERS, layer.dense_shape.numel()) * layer.values.element_size()
