"""Compactions that remove too much, too little, or touch what they are given: for the law of compaction."""

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

import gossamer as gs
from gossamer import laws
from gossamer.convert.compaction import compact as compact_of
from gossamer.convert.compaction import graph, liveness, narrow, operations, values


def _bent(where: object, name: str, other: Any) -> Callable[[], None]:
    """The law, of a compaction in which one function is another."""

    def compact(model: nn.Module) -> nn.Module:
        with mock.patch.object(where, name, other):
            return gs.compact(model)

    return lambda: laws.check_compact(compact)


def _then(change: Callable[[nn.Module, nn.Module], nn.Module]) -> Callable[[], None]:
    """The law, of a compaction after which something is done to the result; ``change`` is given the model, too."""
    return lambda: laws.check_compact(lambda model: change(gs.compact(model), model))


def _shares(made: nn.Module, model: nn.Module) -> nn.Module:
    *_, last = (m for m in made.modules() if getattr(m, "bias", None) is not None)
    *_, theirs = (m for m in model.modules() if getattr(m, "bias", None) is not None)
    last.bias = theirs.bias
    return made


def _trainable(made: nn.Module, _: nn.Module) -> nn.Module:
    return made.requires_grad_(True)


def _half(made: nn.Module, _: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1 + 1e-9)
    return made


def _keeps_first(reader, live):
    return reader.module


def _no_pins(walk, node, why):
    return None


def _norm_passes(walk, name, m, value):
    walk.found.norms.append(graph.Norm(name, m, value.space, value.spread or 1))
    return value.result(value.constant)


def _all_live(channels):
    return {s: torch.ones(s.size, dtype=torch.bool) for s in channels.spaces()}


def _one_round(live, channels):
    grow(live, channels)
    return False


def _pixels_first(reader, live):
    """Takes the features of a flattened image for pixel by pixel."""
    spread, reader.spread = reader.spread, 1
    try:
        if reader.source is None or spread == 1:
            return narrowed(reader, live)
        kept = live[reader.source.root()]
        return narrowed(reader, {**live, reader.source.root(): kept.repeat(spread)})
    finally:
        reader.spread = spread


grow, narrowed = liveness._grow, narrow.narrowed

COMPACTION = {
    "nothing is removed": lambda: laws.check_compact(copy.deepcopy),
    "the given model is returned": lambda: laws.check_compact(lambda model: model),
    "the given model is changed": _bent(compact_of.copy, "deepcopy", lambda model: model),
    "memory is shared": _then(_shares),
    "frozen parameters are trained": _then(_trainable),
    "modes are lost": _then(lambda made, _: made.train()),
    "the values are others": _then(_half),
    "the layouts are lost": _then(lambda made, _: gs.densify(made)),
    "constants are dropped": _bent(
        narrow, "_constant_part", lambda reader, _: torch.zeros(reader.made.size, dtype=torch.float64)
    ),
    "a padding is forgotten": _bent(graph, "pads_zeros", lambda _: False),
    "a normalisation is forgotten": _bent(graph._Walk, "_norm", _norm_passes),
    "an activation is forgotten": _bent(operations, "apply", lambda function, constant, *_, **__: constant),
    "sums are not joined": _bent(values.Space, "join", lambda space, other: None),
    "outputs are not kept": _bent(graph._Walk, "_opaque", _no_pins),
    "tiles are cut": _bent(values.Space, "tie", lambda *_: None),
    "a flattening is pixel by pixel": _bent(compact_of, "narrowed", _pixels_first),
    "a channel of a constant is kept": _bent(compact_of, "live_channels", _all_live),
    "only one round": _bent(liveness, "_grow", _one_round),
    "what depends on a width is not noticed": _bent(compact_of, "same_program", lambda a, b: True),
    "writing in place is forgotten": _bent(values.Value, "forget", lambda value: None),
}
