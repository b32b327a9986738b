"""The elastic net (Zou & Hastie 2005): R(w) = lam sum(|w| + mu w^2 / 2)."""

from dataclasses import dataclass

import gossamer as gs


@dataclass(frozen=True)
class ElasticNet:
    lam: float
    mu: float = 1.0
    convex, adaptive = True, False

    def value(self, w):
        return self.lam * (w.abs() + self.mu / 2 * w.square()).sum()

    def prox(self, u, tau):  # soft(u, tau lam) / (1 + tau lam mu)
        return gs.L1(self.lam).prox(u, tau) / (1 + tau * self.lam * self.mu)

    def proxes(self, us, taus):
        return [self.prox(u, t) for u, t in zip(us, [taus] * len(us) if isinstance(taus, float) else taus, strict=True)]

    def zero_threshold(self, u, tau):
        return gs.L1(self.lam).zero_threshold(u, tau)

    def subgradient(self, w):
        return self.lam * (w.sign() + self.mu * w)

    def problems(self, shape):
        return []
