"""Lion (Chen et al. 2023, arXiv 2302.06675) with a proximal step.

w <- prox_{s R}(w - s sign(b1 m + (1 - b1) g));    m <- b2 m + (1 - b2) g        s = lr
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

import gossamer as gs


@dataclass(frozen=True)
class ProxLion:
    penalty: gs.Penalty
    b1: float = 0.9
    b2: float = 0.99
    needs_dense: ClassVar[bool] = True  # a weight that is zero may come back
    zeros_follow_state: ClassVar[bool] = False  # a weight takes steps to reach zero

    def init(self, w, strength=1.0):
        return {"m": torch.zeros_like(w)}

    def update_(self, w, g, state, step):
        m = state["m"]
        u = gs.rules.foreach.lerp(m, g, 1 - self.b1)
        gs.rules.foreach.sign_(u)
        gs.rules.foreach.add_(w, u, alpha=-step.lr)
        gs.rules.foreach.copy_(w, self.penalty.proxes(w, step.lr * step.strength))
        gs.rules.foreach.lerp_(m, g, 1 - self.b2)

    def zero_thresholds(self, w, state, step):
        return [self.penalty.zero_threshold(p, step.lr) for p in w]

    def schedules(self):
        return {}
