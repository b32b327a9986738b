# pyright: strict
"""``compact``: a smaller model with equal outputs."""

import copy
from typing import NamedTuple

from torch import nn

from ..._errors import check_module
from ..._modules import named_modules, replaced
from ...layers import SparseLayer
from ..report import table
from .graph import Reader, Untraceable, channels_of, same_program, trace_of
from .liveness import Live, live_channels
from .narrow import narrow_norm_, narrowed
from .weights import Layer


class CompactedLayer(NamedTuple):
    """One layer before and after :func:`compact`."""

    name: str
    kind: str
    before: tuple[int, ...]  # shape of the dense weight
    after: tuple[int, ...]
    reason: str  # why its output has as many channels as before; "" if it has fewer


class Compaction(NamedTuple):
    """The result of :func:`compact`; ``str(report)`` is a table. A compact layout counts only its kept parameters."""

    rows: tuple[CompactedLayer, ...]
    parameters_before: int
    parameters_after: int
    reason: str = ""  # why the model could not be traced; "" if it was

    def __str__(self) -> str:
        lines = [("layer", "kind", "before", "after", "")]
        for row in self.rows:
            before, after = (" x ".join(map(str, shape)) for shape in (row.before, row.after))
            lines.append((row.name or "(root)", row.kind, before, after, row.reason))
        lines.append(("parameters", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}", self.reason))
        return "\n".join(table(lines))


def compact(model: nn.Module) -> nn.Module:
    """Makes a smaller model with equal outputs in eval mode, without the channels that cannot change an output.

    A channel is a neuron or a filter. There are two cases:

    - *unread*: all weights from this channel to remaining channels are zero.
    - *constant*: the channel does not depend on the input. All its incoming weights are zero or come from constant
      channels, or a batch normalisation multiplies it by zero. Its value is followed through normalisation, activation
      and pooling, and added to the biases of the layers that read it (a layer without a bias gets one). Before a
      convolution that pads with zeros, only channels with the constant 0 are removed.

    A removed channel disappears from the rows of the layer that makes it, from batch normalisations, and from the
    columns of the layers that read it. This is repeated until nothing changes. The operands of a sum (a residual
    connection) keep the same channels. Every layer keeps at least one channel. Of blocks (``block``) only whole ones
    are removed.

    ``torch.fx`` traces the model. Channels are followed through Linear and Conv2d layers, dense and sparse, batch
    normalisations, activations, pooling, dropout, flattening, sums and products. The inputs and outputs of the model
    and of all other operations keep their channels. A model that cannot be traced, or that reads the size of a layer
    in its forward pass, is copied without changes. Two assumptions are made: images have a batch dimension,
    (N, C, H, W); a BatchNorm1d of F features that follows a Linear layer of F features normalises these features.

    Sparse layers keep their layout and the remaining part of their support. A kept connection whose value is zero
    counts as zero: call this function after training.

    Returns: a new model with new parameters, in the same mode. The given model is not changed. ``compaction_report``
    of the new model lists the size of each layer, or why it did not shrink. The parameters need a new optimizer.
    Outputs agree up to rounding. In training mode they also agree, unless a removed constant came through a dropout
    or through a batch normalisation, which then uses the statistics of the batch.
    """
    check_module("compact", model)
    try:
        (made, reasons), why_not = _narrowed(copy.deepcopy(model).eval()), ""
    except Untraceable as error:
        made, reasons, why_not = copy.deepcopy(model), dict[str, str](), str(error)
    modes = {name: m.training for name, m in named_modules(model).items()}
    for name, m in named_modules(made).items():
        m.training = modes[name]
    given, rows = _layers(model), list[CompactedLayer]()
    for name, m in _layers(made).items():
        rows.append(CompactedLayer(name, type(m).__name__, _shape(given[name]), _shape(m), reasons.get(name, why_not)))
    vars(made).pop("sparsity_report", None)  # it lists the old shapes
    vars(made)["compaction_report"] = Compaction(tuple(rows), _parameters(model), _parameters(made), why_not)
    return made


# -------------------------------------------------------------------- details


def _layers(model: nn.Module) -> dict[str, Layer]:
    return {name: m for name, m in named_modules(model).items() if isinstance(m, nn.Linear | nn.Conv2d | SparseLayer)}


def _shape(m: Layer) -> tuple[int, ...]:
    return tuple(m.dense_shape if isinstance(m, SparseLayer) else m.weight.shape)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _narrowed(model: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """Removes the dead channels of ``model``, in place.

    Returns: the model, and for each layer why its output did not shrink, "" if it did.

    Raises: :class:`Untraceable`.
    """
    trace = trace_of(model)
    channels = channels_of(model, trace)
    live = live_channels(channels)
    reasons = dict.fromkeys(_layers(model), "it is not called")
    reasons.update((name, why) for name, why in channels.alone.items() if name in reasons)
    reasons.update((reader.name, _reason(reader, live)) for reader in channels.readers)
    for norm in channels.norms:
        narrow_norm_(norm, live)
    model = replaced(model, {r.module: m for r in channels.readers if (m := narrowed(r, live)) is not r.module})
    if not same_program(trace, trace_of(model)):
        raise Untraceable("its forward pass reads the sizes of its layers")
    return model, reasons


def _reason(reader: Reader, live: Live) -> str:
    space = reader.made.root()
    if not live[space].all():
        return ""
    return space.pinned or ("every layer keeps one channel" if space.size == 1 else "no output channel is dead")
