"""Penalties R(w): value, proximal map, and the subgradient that initialises a mirror variable.

    prox(u, tau) = argmin_w  tau R(w) + |w - u|^2 / 2

                    R(w)                                          prox
    Zero            0                                             the identity
    L1              lam sum |w|                                   soft threshold at tau lam
    NonNegativeL1   lam sum w, w >= 0                             max(u - tau lam, 0)
    GroupL1         lam sum_G sqrt|G| |w_G|_2                     group shrinkage
    LogL1           lam (beta + 1) sum M log(beta + |w| / M)      soft threshold of its majoriser, a weighted l1
    TopK            0 up to n non-zero entries, else infinite     the n largest stay

A penalty is a frozen value and holds no state. There is one file per penalty. ``protocol.py`` holds the protocol that
rules use. ``maps.py`` holds the maps that penalties share.
"""

# pyright: strict

from .group import GroupL1
from .l1 import L1, NonNegativeL1
from .log import LogL1
from .maps import GROUPS, norms, ratio, root, shrink, soft, softs, spread
from .protocol import AdaptivePenalty, Penalty, ScaledPenalty, Tau, Taus, is_adaptive
from .top_k import TopK
from .zero import Zero

__all__ = [
    "AdaptivePenalty", "GROUPS", "GroupL1", "is_adaptive", "L1", "LogL1", "NonNegativeL1", "norms", "Penalty", "ratio",
    "root", "ScaledPenalty", "shrink", "soft", "softs", "spread", "Tau", "Taus", "TopK", "Zero",
]  # fmt: skip
