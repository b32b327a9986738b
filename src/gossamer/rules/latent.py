"""Weights that somebody else has written: the latent variable that shows them.

A rule that keeps a latent u and shows w = prox_{tau R}(u) would undo at its next step what was written to w: best weights restored, say.
So u becomes a variable that shows w:

    where w is not zero    u = w + p, p = K w - prox_{tau R}(K w) for a large K: what the penalty takes from a large weight of this sign
    where w is zero        u as it was, drawn back to where it shows zero: it goes on from there
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..penalties import Penalty, Tau

LARGE = 2.0**20  # K
ALMOST = 1 - 1e-5  # of the level from which an entry is zero


@runtime_checkable
class Latent(Protocol):
    """A rule whose weights follow from its state: told where they were written by somebody else."""

    def restart_(self, w: list[Tensor], state: dict[str, list[Tensor]], now: object) -> None:
        """Changes ``state`` so that it shows ``w``."""
        ...


def shown_by(penalty: Penalty, w: Tensor, tau: Tau) -> Tensor:
    """u with prox_{tau R}(u) = w, where w is not zero."""
    far = w.double() * LARGE
    taken = far - penalty.prox(far, tau.double() if torch.is_tensor(tau) else tau)
    return w + taken.to(w.dtype)


def drawn_back(u: Tensor, level: Tensor, strength: float) -> Tensor:
    """u where it shows zero at this strength, entry by entry; ``level``: the strength from which it does."""
    return u * (ALMOST * strength / level).nan_to_num(1.0, 1.0).clamp(max=1.0)
