"""What a Rewirer refuses at construction: layers, optimizers and budgets that do not fit its topology."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._budgets import counts, frozen_warning, resolve
from .._errors import UsageError
from ..keeper import nested
from ..layers import SparseLayer
from ..topology import Topology, TopologyLike

Layers = Mapping[str, SparseLayer]


def resolved(topology: object, steps: int | None) -> Topology:
    """The topology for a run of ``steps`` optimizer steps. Raises UsageError if ``topology`` is something else."""
    if isinstance(topology, TopologyLike) and not isinstance(topology, type):
        found: Any = topology.resolve(steps)  # a user's class may return anything
        if isinstance(found, Topology):
            return found
    remedy = "gs.CSST(stop=...), gs.RigL(stop=...), ..."
    raise UsageError("Rewirer", "topology must be a Topology, or resolve to one", got=topology, remedy=remedy)


def check_layers(layers: Layers) -> None:
    """Refuses a model without sparse layers, and layers whose values determine the support."""
    if not layers:
        raise UsageError("Rewirer", "the model has no sparse layer", remedy="gs.sparsify(model, density=...) first")
    following = [name for name, layer in layers.items() if layer.layout.follows]
    if following:
        what = "the support of these layers is where their values are not zero, so a topology cannot change it"
        remedy = 'sparsify(layout="csr") for a topology; or no Rewirer, and a SparseOptimizer'
        raise UsageError("Rewirer", what, reasons=following, remedy=remedy)


def check_held(layers: Layers, optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer that does not hold the values of all layers that train."""
    groups = [group for holder in nested(optimizer) for group in holder.param_groups]
    held = {id(p) for group in groups for p in group["params"]}
    missing = [
        f"{name}.values"
        for name, layer in layers.items()
        if layer.values.requires_grad and id(layer.values) not in held
    ]
    if len({id(layer.values) for layer in layers.values()}) < len(layers):
        what = "two sparse layers hold the same values, but each has its own support"
        raise UsageError("Rewirer", what, remedy="use one layer in both places")
    if missing:
        what = "the optimizer does not hold all sparse values"
        remedy = "make the optimizer after sparsify, and load without assign=True"
        raise UsageError("Rewirer", what, reasons=missing, remedy=remedy)


def check_not_bucketed(model: nn.Module, layers: Layers, topology: Topology) -> None:
    """Refuses DistributedDataParallel if the number of values will change."""
    if topology.final_density is None and not topology.merge and topology.keeps_layer_sizes:
        return
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    if wrapped and any(layer.layout.storage == "compact" for layer in layers.values()):
        held = "DistributedDataParallel holds their gradients in buckets of fixed size"
        what = f"{topology.name} with these settings changes the number of values, but {held}"
        remedy = "a topology of constant size; or no wrapper, and all_reduce of the gradients before step()"
        raise UsageError("Rewirer", what, remedy=remedy)


def final_sizes(layers: Layers, topology: Topology) -> dict[str, int]:
    """The number of blocks of each layer at the end."""
    if topology.final_density is None:
        return {name: layer.support.n for name, layer in layers.items()}
    names, shapes = list(layers), [tuple(layer.dense_shape) for layer in layers.values()]
    densities = resolve(topology.budget, names, shapes, topology.final_density, topology.name)
    totals = [layer.support.total for layer in layers.values()]
    return dict(zip(names, counts(densities, totals), strict=True))


def check_sizes(layers: Layers, topology: Topology, final: Mapping[str, int]) -> None:
    """Refuses a minimal fan-in that layers do not have at the start or at the end, and layers that must grow but
    cannot. Warns if frozen layers prevent the final density."""
    least, start = topology.min_fan_in, {name: layer.support.n for name, layer in layers.items()}
    thin: list[str] = []
    for name, layer in layers.items():
        fan_in, rows = layer.support.crow.diff(), layer.support.grid[0]
        if bool((fan_in < least).any()):
            thin.append(f"{name}: {int((fan_in < least).sum())} of {rows} output units have fewer")
        elif final[name] < least * rows:
            thin.append(f"{name}: it has {final[name]} blocks at the end, and {rows} output units")
    if thin:
        what = f"min_fan_in={least}: every output unit must have as many incoming blocks, at the start and at the end"
        remedy = f"sparsify(..., min_fan_in={least}), or a larger density"
        raise UsageError("Rewirer", what, reasons=thin, remedy=remedy)
    rising = [f"{name}: {start[name]} blocks now, {n} at the end" for name, n in final.items() if n > start[name]]
    if rising and not topology.can_grow:
        what = f"{topology.name} only prunes, but its final budget gives layers more blocks than they have"
        remedy = "a larger density at the start, or the same budget at the start and at the end"
        raise UsageError("Rewirer", what, reasons=rising, remedy=remedy)
    if topology.final_density is not None:
        frozen = [name for name, layer in layers.items() if not layer.values.requires_grad]
        totals = {name: layer.support.total for name, layer in layers.items()}
        if said := frozen_warning(topology.final_density, totals, start, dict(final), frozen):
            warnings.warn(f"{topology.name}: {said}", stacklevel=3)
