"""What :class:`~gossamer.Multilevel` refuses: models, optimizers, saved states."""

# pyright: strict

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import UsageError
from ..layers import SparseLayer
from ..rules.optimizer import SparseOptimizer
from ..rules.rule import MirrorRule
from .states import is_count, is_dict

WHO = "Multilevel"
STATE = ("t", "settings", "supports", "cold", "has_cold")  # keys of a saved state


def checked_optimizer(layers: Mapping[str, SparseLayer], optimizer: object) -> SparseOptimizer:
    """The optimizer. Raises UsageError unless the layers are compact, of single weights, and fit it."""
    if not layers:
        raise UsageError(WHO, "the model has no sparse layer", remedy="gs.sparsify(model, density=...) first")
    if len({id(layer.values) for layer in layers.values()}) < len(layers):
        what = "two sparse layers hold the same values, but each has its own support"
        raise UsageError(WHO, what, remedy="use one layer in both places")
    if not isinstance(optimizer, SparseOptimizer):
        raise UsageError(WHO, "the optimizer must be a SparseOptimizer", got=type(optimizer).__name__)
    layouts = {name: layer.layout for name, layer in layers.items()}
    reasons = [f"{name}: layout {layout.name}" for name, layout in layouts.items() if layout.storage != "compact"]
    reasons += [f"{name}: blocks of {layer.block}" for name, layer in layers.items() if layer.block != (1, 1)]
    if reasons:
        what = "the layers must be compact and of single weights"
        raise UsageError(WHO, what, reasons=reasons, remedy='sparsify(layout="csr")')
    reasons = [problem for name, layer in layers.items() if (problem := _rule_problem(name, layer, optimizer))]
    if reasons:
        what = "the optimizer does not fit these layers"
        raise UsageError(WHO, what, reasons=reasons, remedy="gs.parameter_groups(model), and a LinBreg or AdaBreg rule")
    return optimizer


def _rule_problem(name: str, layer: SparseLayer, optimizer: SparseOptimizer) -> str | None:
    at = group_of(layer, optimizer)
    if at is None:
        return f"{name}.values is not in the optimizer: make it after sparsify"
    rule = optimizer.rules[at]
    if not isinstance(rule, MirrorRule):
        return f"{name} has the rule {type(rule).__name__}, which has no mirror variable"
    if not optimizer.param_groups[at]["penalised"]:
        return f"{name} is not penalised, so no weight would become zero"
    return None


def group_of(layer: SparseLayer, optimizer: SparseOptimizer) -> int | None:
    """The position of the optimizer's group that holds the layer's values; None if none does."""
    groups = enumerate(optimizer.param_groups)
    return next((i for i, group in groups if any(p is layer.values for p in group["params"])), None)


def state_problems(
    state: Any, settings: Mapping[str, Any], expected: Mapping[str, set[str]], layers: Mapping[str, SparseLayer]
) -> list[str]:
    """Sentences that say why a saved state cannot be loaded; [] if it can.

    Args:
        state: the saved state. It may come from any file, so it may have any type.
        settings: of the present object.
        expected: for each layer, the names of the entries that its rule keeps.
        layers: the present layers, by name.
    """
    if not is_dict(state) or not set(STATE) <= set(state) or not all(is_dict(state[key]) for key in STATE[1:]):
        return [f"a state of Multilevel has {', '.join(STATE)}"]
    t, saved, supports, cold, has_cold = (state[key] for key in STATE)
    if not is_count(t):
        return [f"t must be a number of steps, not {t!r}"]
    changed = [key for key in settings if repr(settings[key]) != repr(saved.get(key))]
    problems = [f"{key} was {saved.get(key)}, but is now {settings[key]}" for key in changed]
    if list(supports) != list(layers) or list(cold) != list(layers):
        return [*problems, f"it is of layers {list(supports)}, not {list(layers)}"]
    if not all(type(tag) is int for tag in supports.values()):
        problems.append("the tags of the supports must be whole numbers")
    if {name: entries is not None for name, entries in cold.items()} != has_cold:
        return [*problems, "cold and has_cold do not agree on which layers have cold storage"]
    if not all(type(has) is bool for has in has_cold.values()):
        problems.append("has_cold must hold True or False for every layer")
    for name, entries in cold.items():  # None: no fine step yet
        shape, dtype = layers[name].support.shape, layers[name].values.dtype
        if entries is not None and not _are_entries(entries, expected[name], shape, dtype):
            names = ", ".join(sorted(expected[name]))
            problems.append(f"{name}: cold storage must have {names}, each of shape {shape} and {dtype}")
    return problems


def _are_entries(entries: object, names: set[str], shape: tuple[int, int], dtype: torch.dtype) -> bool:
    if not is_dict(entries) or set(entries) != names:
        return False
    return all(isinstance(t, Tensor) and t.shape == shape and t.dtype == dtype for t in entries.values())
