"""Restarts a latent variable u from given weights w.

Some rules keep a latent u, and their weights are w = prox_{tau R}(u). If other code writes to w, for instance to
restore the best weights, the next step of the rule would undo it. So u is first changed so that it gives w:

    where w is not zero    u = w + p, p = K w - prox_{tau R}(K w) for a large K
    where w is zero        u keeps its value, or is reduced until prox_{tau R}(u) = 0

p is the amount by which the penalty reduces a large weight of the same sign.
"""

# pyright: strict

from torch import Tensor

from ..penalties import Penalty, Tau

LARGE = 2.0**20  # K
ALMOST = 1 - 1e-5  # below this fraction of its threshold an entry is certainly zero, in spite of rounding


def shown_by(penalty: Penalty, w: Tensor, tau: Tau) -> Tensor:
    """u with prox_{tau R}(u) = w where w is not zero. It has the shape of ``w``."""
    far = w.double() * LARGE
    taken = far - penalty.prox(far, tau.double() if isinstance(tau, Tensor) else tau)
    return w + taken.to(w.dtype)


def reduced_to_zero(u: Tensor, threshold: Tensor, strength: float) -> Tensor:
    """u, with each entry reduced until the proximal map gives zero at this strength.

    ``threshold``: for each entry, the smallest strength at which it gives zero without reduction.
    """
    return u * (ALMOST * strength / threshold).nan_to_num(1.0, 1.0).clamp(max=1.0)
