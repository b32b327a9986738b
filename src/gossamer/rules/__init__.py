"""Rules: how values change under a penalty.

``rule.py`` says what a rule is, ``optimizer.py`` holds the optimizer around all rules, and each algorithm has its own
file. ``foreach`` has the functions on lists of tensors that a rule's step is made of.
"""

# pyright: strict

from .._backend import foreach
from .adabreg import AdaBreg
from .linbreg import LinBreg
from .optimizer import SparseOptimizer
from .prox_sgd import ProxSGD
from .rda import RDA
from .rule import Latent, MirrorRule, Rule, State, StepInfo
from .xrda import XRDA

__all__ = [
    "AdaBreg", "foreach", "Latent", "LinBreg", "MirrorRule", "ProxSGD", "RDA", "Rule", "SparseOptimizer", "State",
    "StepInfo", "XRDA",
]  # fmt: skip
