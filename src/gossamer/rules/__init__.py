"""Rules: how values change under a penalty.

``rule.py`` says what a rule is, ``optimizer.py`` holds the optimizer around all rules, and each algorithm has its own
file.
"""

# pyright: strict

from .adabreg import AdaBreg
from .linbreg import LinBreg
from .optimizer import SparseOptimizer
from .prox_sgd import ProxSGD
from .rda import RDA
from .rule import Rule, StepInfo
from .xrda import XRDA

__all__ = ["AdaBreg", "LinBreg", "ProxSGD", "RDA", "Rule", "SparseOptimizer", "StepInfo", "XRDA"]
