# pyright: strict
"""Narrowing: layers and normalisations with fewer channels, and biases that include the removed constants."""

import torch
from torch import Tensor, nn

from ...layers import SparseConv2d, SparseLayer, SparseLinear
from ...support import Support, grid_of
from .graph import Norm, Reader
from .liveness import Live
from .weights import Layer, bias_of, sizes_of, taps_of


def narrowed(reader: Reader, live: Live) -> Layer:
    """The layer with the remaining channels; the layer itself if it does not change."""
    rows = live[reader.made.root()]
    width = sizes_of(reader.module)[1]
    source = None if reader.source is None else live[reader.source.root()]
    features = torch.ones(width, dtype=torch.bool) if source is None else source.repeat_interleave(reader.spread)
    extra = _constant_part(reader, source)
    if bool(rows.all()) and bool(features.all()) and not extra.any():
        return reader.module
    bias = (bias_of(reader.module) + extra)[rows] if reader.module.bias is not None or extra[rows].any() else None
    m = reader.module
    return _sparse(m, rows, features, bias) if isinstance(m, SparseLayer) else _dense(m, rows, features, bias)


def narrow_norm_(norm: Norm, live: Live) -> None:
    """Removes all other channels from a normalisation, in place."""
    m, kept = norm.module, live[norm.space.root()].repeat_interleave(norm.spread)
    if kept.all():
        return
    m.num_features = int(kept.sum())
    for name in ("weight", "bias", "running_mean", "running_var"):
        t = getattr(m, name)
        if t is not None:
            setattr(m, name, _part(t, kept))


def _constant_part(reader: Reader, source: Tensor | None) -> Tensor:
    """The contribution of the removed constant channels to each output, (out,) float64."""
    weights, extra = reader.weights, torch.zeros(sizes_of(reader.module)[0], dtype=torch.float64)
    if source is None:
        return extra
    gone = ~source[reader.channel]
    return extra.index_add(0, weights.row[gone], weights.value[gone] * reader.constant[gone])


def _part(t: Tensor, kept: Tensor) -> Tensor:
    """The kept entries along the first dimension, in new memory, as a parameter if ``t`` is one."""
    part = t.detach()[kept.to(t.device)].clone()
    return nn.Parameter(part, t.requires_grad) if isinstance(t, nn.Parameter) else part


def _bias(like: Tensor, old: Tensor | None, bias: Tensor | None) -> nn.Parameter | None:
    """The new bias as a parameter with the dtype and device of the weight.

    It requires a gradient if the old bias does; without an old bias, if the weight does.
    """
    if bias is None:
        return None
    return nn.Parameter(bias.to(like.device, like.dtype), like.requires_grad if old is None else old.requires_grad)


def _dense(m: nn.Linear | nn.Conv2d, rows: Tensor, features: Tensor, bias: Tensor | None) -> nn.Linear | nn.Conv2d:
    """Removes channels from the layer, in place: type, mode and attributes stay."""
    new, sizes = _bias(m.weight, m.bias, bias), (int(rows.sum()), int(features.sum()))
    weight = m.weight.detach()[rows.to(m.weight.device)][:, features.to(m.weight.device)].clone()
    m.register_parameter("weight", nn.Parameter(weight, m.weight.requires_grad))
    m.register_parameter("bias", new)
    if isinstance(m, nn.Linear):
        m.out_features, m.in_features = sizes
    else:
        m.out_channels, m.in_channels = sizes
    return m


def _sparse(m: SparseLayer, rows: Tensor, features: Tensor, bias: Tensor | None) -> SparseLayer:
    """A new layer of the same layout. Its support is the remaining part of the old support, renumbered."""
    s, (h, w) = m.support, m.block
    columns = features.repeat_interleave(taps_of(m))
    row_blocks, column_blocks = rows[::h], columns[::w]  # channels of one block are tied, so they stay together
    shape = (int(rows.sum()), int(columns.sum()))
    ids, grid = s.ids().cpu(), s.grid
    i, j = ids // grid[1], ids % grid[1]
    kept = row_blocks[i] & column_blocks[j]
    i, j = (row_blocks.cumsum(0) - 1)[i[kept]], (column_blocks.cumsum(0) - 1)[j[kept]]
    support = Support.from_ids(i * grid_of(shape, m.block)[1] + j, shape, m.block)
    sizes, g, rng = (int(features.sum()), shape[0]), m.geometry, torch.Generator()  # its values are replaced below
    made: SparseLayer
    if g is None:
        made = SparseLinear(*sizes, support=support, layout=m.layout, rng=rng, dtype=m.values.dtype)
    else:
        made = SparseConv2d(*sizes, *g, support=support, layout=m.layout, rng=rng, dtype=m.values.dtype)
    made.to(m.values.device)
    made.set_values_(m.layout.compact(m.values.detach(), s)[kept.to(m.values.device)])
    made.values.requires_grad_(m.values.requires_grad)
    made.register_parameter("bias", _bias(m.values, m.bias, bias))
    return made.train(m.training)
