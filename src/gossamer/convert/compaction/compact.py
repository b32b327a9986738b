# pyright: strict
"""Compact: a smaller model with equal outputs."""

import copy
from typing import NamedTuple

from torch import nn

from ..._modules import named_modules, replaced
from ...layers import SparseLayer
from ..report import table
from .graph import Channels, Reader, Untraceable, channels_of
from .liveness import Live, live_channels
from .narrow import narrow_norm_, narrowed
from .weights import Layer


class CompactedLayer(NamedTuple):
    """One layer, as :func:`compact` found it and as it left it."""

    name: str
    kind: str
    before: tuple[int, ...]  # shape of the dense weight
    after: tuple[int, ...]
    reason: str  # why its output has not become smaller; "" if it has


class Compaction(NamedTuple):
    """What :func:`compact` did: ``str(report)`` is a table. Parameters are counted as they are stored: of a compact
    layout, the kept ones."""

    rows: tuple[CompactedLayer, ...]
    parameters_before: int
    parameters_after: int
    reason: str = ""  # why nothing at all was looked at; "" otherwise

    def __str__(self) -> str:
        lines = [("layer", "kind", "before", "after", "")]
        for row in self.rows:
            before, after = (" x ".join(map(str, shape)) for shape in (row.before, row.after))
            lines.append((row.name or "(root)", row.kind, before, after, row.reason))
        lines.append(("parameters", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}", self.reason))
        return "\n".join(table(lines))


def compact(model: nn.Module) -> nn.Module:
    """A smaller model with equal outputs in eval mode: channels (neurons, filters) that no output depends on are
    removed.

    A channel is removed where it is certain that this changes no output:

    - *unread*: no weight that leads from it to a channel that stays is different from zero; - *constant*: it does not
    depend on the input, since all its incoming weights are zero or come from constant channels, or since its
      normalisation multiplies it by zero. Its value, through normalisation, activation and pooling, is then added to
      the biases of the layers that read it (which get a bias if they have none). A convolution that pads with zeros
      can only take over the constant 0.

    With it go the row of the layer that makes it, its entries in batch normalisations, and its columns in the layers
    that read it. This is repeated until nothing changes. The operands of a sum (a residual connection) keep the same
    channels.

    The model is traced by ``torch.fx`` and followed through Linear and Conv2d layers, dense and sparse, batch
    normalisations, activations, pooling, dropout, flattening, sums and products. Inputs and outputs of the model, and
    of anything that is not known here, keep their width. A model that cannot be traced is copied as it is. Images have
    a batch dimension, (N, C, H, W), and a batch normalisation of F features behind a linear layer of F features
    normalises these.

    Sparse layers keep their layout, and what is left of their support. A kept connection whose value is zero counts as
    zero: use this after training. Of tiles (``block``) only whole ones are removed, and one channel stays of every
    layer.

    Returns: a new model, with new parameters and in the same mode; the given one is not changed. ``compaction_report``
        says for each layer how
    it shrank, or why it did not. Outputs agree up to rounding. In training mode they agree too, unless a removed
    constant came through a batch normalisation (which would use the statistics of the batch) or a dropout; an
    optimizer must be made anew.
    """
    made = copy.deepcopy(model).eval()
    before = {name: tuple(_shape(m)) for name, m in _layers(made).items()}
    modes = {name: m.training for name, m in named_modules(model).items()}
    size, reason, rows = _parameters(made), "", []
    try:
        channels = channels_of(made)
    except Untraceable as error:
        reason, rows = str(error), [_row(name, m, before[name], str(error)) for name, m in _layers(made).items()]
    else:
        live = live_channels(channels)
        reasons = _reasons(channels, live, before)
        for norm in channels.norms:
            narrow_norm_(norm, live)
        made = replaced(made, {r.module: m for r in channels.readers if (m := narrowed(r, live)) is not r.module})
        rows = [_row(name, m, before[name], reasons[name]) for name, m in _layers(made).items()]
    for name, m in named_modules(made).items():
        m.training = modes[name]
    vars(made).pop("sparsity_report", None)  # it is of the shapes before
    vars(made)["compaction_report"] = Compaction(tuple(rows), size, _parameters(made), reason)
    return made


# -------------------------------------------------------------------- details


def _layers(model: nn.Module) -> dict[str, Layer]:
    return {name: m for name, m in named_modules(model).items() if isinstance(m, nn.Linear | nn.Conv2d | SparseLayer)}


def _shape(m: Layer) -> tuple[int, ...]:
    return tuple(m.dense_shape if isinstance(m, SparseLayer) else m.weight.shape)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _row(name: str, m: Layer, before: tuple[int, ...], reason: str) -> CompactedLayer:
    return CompactedLayer(name, type(m).__name__, before, _shape(m), reason)


def _reasons(channels: Channels, live: Live, before: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Why the output of each layer stays as wide as it is; "" where it does not."""
    found = dict.fromkeys(before, "it is not called")
    found.update((name, why) for name, why in channels.alone.items() if name in before)
    found.update((reader.name, _reason(reader, live)) for reader in channels.readers)
    return found


def _reason(reader: Reader, live: Live) -> str:
    space = reader.made.root()
    if not live[space].all():
        return ""
    if space.size == 1:
        return "one channel stays of every layer"
    return space.pinned or "no output channel is dead"
