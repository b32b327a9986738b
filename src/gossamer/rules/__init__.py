"""Rules: how values move under a penalty. One file per algorithm; ``rule`` holds the optimizer around them."""

from .adabreg import AdaBreg as AdaBreg
from .linbreg import LinBreg as LinBreg
from .prox_sgd import ProxSGD as ProxSGD
from .rda import RDA as RDA
from .rule import Rule as Rule
from .rule import SparseOptimizer as SparseOptimizer
from .rule import StepInfo as StepInfo
from .xrda import XRDA as XRDA
