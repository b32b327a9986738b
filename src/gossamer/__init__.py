"""Gossamer: neural networks that are sparse from the first step to the last.

A sparse weight is a pair (support, values). Training multiplies by it, moves the values, and rewires the support.
"""

from . import checkpoint, laws, penalties, recover, rules
from ._backend.dispatch import Kernel, choose, why
from ._backend.native import keep_freed_memory
from ._budgets import BUDGETS, er, erk, pooled, uniform
from ._errors import UsageError
from ._plan import Plan, plan
from ._schedules import (
    Events,
    Schedule,
    averaging,
    constant,
    cosine,
    cosine_pair,
    cubic,
    growing,
    halving,
    halving_pair,
    regular,
    step_of,
    warm_up,
)
from .convert.compaction.compact import compact
from .convert.densify import densify
from .convert.groups import parameter_groups
from .convert.initial import reinitialise_
from .convert.report import Report
from .convert.sparsify import sparsify
from .layers import SparseConv2d, SparseLayer, SparseLinear, sparse_layers
from .layouts import CSR, LAYOUTS, MASKED, SHADOW, Layout, gather, scatter
from .ledger import Ledger, cost_model
from .penalties import L1, GroupL1, LogL1, NonNegativeL1, Penalty, TopK
from .rules import RDA, XRDA, AdaBreg, LinBreg, ProxSGD, Rule, SparseOptimizer, StepInfo
from .support import Support
from .surgery import set_support_
from .topology import (
    CSST,
    GMP,
    SET,
    SNFS,
    Annealed,
    LayerState,
    Outcome,
    RigL,
    Sensing,
    Static,
    Topology,
    TopologyLike,
    Update,
    event,
    rewire,
)
from .topology.slots import (
    allocate_fixed,
    allocate_pooled,
    block_norm,
    drop_by_magnitude,
    drop_by_sign,
    exchange_by_projection,
    exchange_fraction,
    grow_random,
    grow_sensed,
)
from .training.average import AveragedModel
from .training.events import Diverged, Event
from .training.loop import Step, fit
from .training.multilevel import Multilevel
from .training.rewirer import Rewirer
from .training.target import TargetDensity

__version__ = "0.1.0"

__all__ = [
    "AdaBreg", "allocate_fixed", "allocate_pooled", "Annealed", "AveragedModel", "averaging", "block_norm", "BUDGETS",
    "checkpoint", "choose", "compact", "constant", "cosine", "cosine_pair", "cost_model", "CSR", "CSST", "cubic",
    "densify", "Diverged", "drop_by_magnitude", "drop_by_sign", "er", "erk", "Event", "event", "Events",
    "exchange_by_projection", "exchange_fraction", "fit", "gather", "GMP", "GroupL1", "grow_random", "grow_sensed",
    "growing", "halving", "halving_pair", "keep_freed_memory", "Kernel", "L1", "laws", "LayerState", "Layout",
    "LAYOUTS", "Ledger", "LinBreg", "LogL1", "MASKED", "Multilevel", "NonNegativeL1", "Outcome", "parameter_groups",
    "penalties", "Penalty", "Plan", "plan", "pooled", "ProxSGD", "RDA", "recover", "regular", "reinitialise_",
    "Report", "rewire", "Rewirer", "RigL", "Rule", "rules", "scatter", "Schedule", "Sensing", "SET", "set_support_",
    "SHADOW", "SNFS", "sparse_layers", "SparseConv2d", "SparseLayer", "SparseLinear", "SparseOptimizer", "sparsify",
    "Static", "Step", "step_of", "StepInfo", "Support", "TargetDensity", "TopK", "Topology", "TopologyLike",
    "uniform", "Update", "UsageError", "warm_up", "why", "XRDA",
]  # fmt: skip
