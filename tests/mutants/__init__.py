"""Objects broken on purpose. MUTANTS: law -> what is broken -> a call of the law, which must raise AssertionError.

Each file holds the mutants of one subject, as each file of ``gossamer.laws`` holds its laws.
"""

from collections.abc import Callable

from . import (
    average,
    checkpoints,
    compaction,
    events,
    indices,
    kernels,
    layers,
    layouts,
    meaning,
    newborn,
    ownership,
    penalties,
    recovery,
    rules,
    supports,
    surgery,
    topologies,
    transforms,
)

MUTANTS: dict[str, dict[str, Callable[[], object]]] = {
    "check_support": supports.SUPPORT,
    "check_rewire": supports.REWIRE,
    "check_event": events.EVENT,
    "check_kernel": kernels.KERNEL,
    "check_index": indices.INDEX,
    "check_layout": layouts.LAYOUT,
    "check_layer": layers.LAYER,
    "check_surgery": surgery.SURGERY,
    "check_penalty": penalties.PENALTY,
    "check_rule": rules.RULE,
    "check_topology": topologies.TOPOLOGY,
    "check_passes": ownership.PASSES,
    "check_copies": ownership.COPIES,
    "check_reload": ownership.RELOAD,
    "check_average": average.AVERAGE,
    "check_newborn": newborn.NEWBORN,
    "check_checkpoint": checkpoints.CHECKPOINT,
    "check_operator": recovery.OPERATOR,
    "check_solver": recovery.SOLVER,
    "check_units": recovery.UNITS,
    "check_transforms": transforms.TRANSFORM,
    "check_meaning": meaning.MEANING,
    "check_compact": compaction.COMPACTION,
}
