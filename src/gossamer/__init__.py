"""Gossamer: neural networks that are sparse from the first step to the last.

A sparse weight is a pair (support, values). Training does three things to it: multiply, move, rewire.
"""

from . import checkpoint as checkpoint
from . import laws as laws
from . import penalties as penalties
from . import recover as recover
from . import rules as rules
from . import _schedules as schedules
from .training.average import AveragedModel as AveragedModel
from ._budgets import BUDGETS as BUDGETS
from ._budgets import er as er
from ._budgets import erk as erk
from ._budgets import pooled as pooled
from ._budgets import uniform as uniform
from .convert.sparsify import Report as Report
from .convert.sparsify import densify as densify
from .convert.sparsify import parameter_groups as parameter_groups
from .convert.sparsify import reinitialise_ as reinitialise_
from .convert.sparsify import sparsify as sparsify
from ._errors import Unfit as Unfit
from .layers import SparseConv2d as SparseConv2d
from .layers import SparseLayer as SparseLayer
from .layers import SparseLinear as SparseLinear
from .layers import sparse_layers as sparse_layers
from .layouts import CSR as CSR
from .layouts import LAYOUTS as LAYOUTS
from .layouts import MASKED as MASKED
from .layouts import SHADOW as SHADOW
from .layouts import Layout as Layout
from .ledger import Ledger as Ledger
from .ledger import cost_model as cost_model
from .training.multilevel import Multilevel as Multilevel
from ._backend.native import keep_freed_memory as keep_freed_memory
from .penalties import L1 as L1
from .penalties import GroupL1 as GroupL1
from .penalties import LogL1 as LogL1
from .penalties import NonNegativeL1 as NonNegativeL1
from .penalties import TopK as TopK
from ._plan import Plan as Plan
from ._plan import plan as plan
from .training.rewirer import Diverged as Diverged
from .training.rewirer import Event as Event
from .training.rewirer import Rewirer as Rewirer
from .rules import RDA as RDA
from .rules import XRDA as XRDA
from .rules import AdaBreg as AdaBreg
from .rules import LinBreg as LinBreg
from .rules import ProxSGD as ProxSGD
from .rules import SparseOptimizer as SparseOptimizer
from .support import Support as Support
from .surgery import set_support_ as set_support_
from .training.target import TargetDensity as TargetDensity
from .topology import Change as Change
from .topology import Sense as Sense
from .topology import Site as Site
from .topology import Topology as Topology
from .topology import csst as csst
from .topology import gmp as gmp
from .topology import rewire as rewire
from .topology import rigl as rigl
from .topology import set as set_
from .topology import snfs as snfs
from .topology import static as static
from .training.loop import Step as Step
from .training.loop import fit as fit

__version__ = "0.1.0"
