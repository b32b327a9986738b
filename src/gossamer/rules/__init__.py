"""Rules: how values change under a penalty.

``rule.py`` holds the protocol of a rule, ``optimizer.py`` the torch optimizer that runs every rule. Each algorithm has
its own file. ``foreach`` has the functions on lists of tensors that a rule uses in its step.
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
