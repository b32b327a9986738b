"""How a latent variable u starts again from given weights.

A rule that keeps a latent u and shows w = prox_{tau R}(u) would undo at its next step what other code wrote to w, for
instance restored best weights. So u is changed until it shows w:

    where w is not zero    u = w + p, p = K w - prox_{tau R}(K w) for a large K
    where w is zero        u keeps its value, reduced to where it shows zero

p is what the penalty takes from a large weight of the same sign.
"""

# pyright: strict

from torch import Tensor

from ..penalties import Penalty, Tau

LARGE = 2.0**20  # K
ALMOST = 1 - 1e-5  # fraction of the threshold below which an entry is surely zero, in spite of rounding


def shown_by(penalty: Penalty, w: Tensor, tau: Tau) -> Tensor:
    """u with prox_{tau R}(u) = w where w is not zero; shaped like ``w``."""
    far = w.double() * LARGE
    taken = far - penalty.prox(far, tau.double() if isinstance(tau, Tensor) else tau)
    return w + taken.to(w.dtype)


def reduced_to_zero(u: Tensor, threshold: Tensor, strength: float) -> Tensor:
    """u, reduced per entry to where it shows zero at this strength.

    ``threshold``: the smallest strength at which it does.
    """
    return u * (ALMOST * strength / threshold).nan_to_num(1.0, 1.0).clamp(max=1.0)
