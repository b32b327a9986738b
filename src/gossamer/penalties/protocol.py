"""The protocol of a penalty R, as rules use it."""

# pyright: strict

from collections.abc import Sequence
from typing import ClassVar, Protocol, TypeGuard, runtime_checkable

from torch import Tensor

Tau = float | Tensor
Taus = float | Sequence[Tensor]  # one number for all tensors, or one tensor for each


@runtime_checkable
class Penalty(Protocol):
    """The members of every penalty.

    ``convex``: it can define a mirror map. ``adaptive``: the rule passes weights in ``tau``, see
    :class:`AdaptivePenalty`.
    """

    convex: ClassVar[bool]
    adaptive: ClassVar[bool]

    def value(self, w: Tensor) -> Tensor:
        """R(w), a tensor of no dimensions."""
        ...

    def prox(self, u: Tensor, tau: Tau) -> Tensor:
        """argmin_w tau R(w) + |w - u|^2 / 2, a new tensor of the shape of ``u``."""
        ...

    def proxes(self, us: Sequence[Tensor], taus: Taus) -> list[Tensor]:
        """``prox`` of each tensor, batched where the map allows it."""
        ...

    def zero_threshold(self, u: Tensor, tau: Tau) -> Tensor:
        """For each entry, the smallest factor f for which prox(u, f tau) is zero there; infinite if there is none.

        It has the shape of ``u``.
        """
        ...

    def subgradient(self, w: Tensor) -> Tensor:
        """An element of the subdifferential at ``w``, 0 where w is 0. It has the shape of ``w``."""
        ...

    def problems(self, shape: Sequence[int]) -> list[str]:
        """Why it cannot penalise a tensor of this shape, in sentences; [] if it can."""
        ...


@runtime_checkable
class AdaptivePenalty(Penalty, Protocol):
    """A penalty with ``adaptive = True``: running magnitudes r, which the rule keeps, give each entry a weight.

    The rule passes tau = step size times :meth:`weights`, a tensor of the shape of :meth:`magnitudes`.
    """

    def magnitudes(self, w: Tensor) -> Tensor:
        """r of the present weights: one number per entry, or per group."""
        ...

    def weights(self, r: Tensor, w: Tensor) -> Tensor:
        """The weight of each magnitude in the penalty. It has the shape of ``r``; ``w`` gives the tensor's shape."""
        ...

    def batched_magnitudes(self, ws: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`magnitudes` of many tensors."""
        ...

    def batched_weights(self, rs: Sequence[Tensor], ws: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`weights` of many tensors."""
        ...

    def majoriser(self, w: Tensor, tau: Tensor) -> Tensor:
        """The convex function of ``w`` whose proximal map is ``prox(u, tau)``; a tensor of no dimensions."""
        ...


@runtime_checkable
class ScaledPenalty(Penalty, Protocol):
    """A penalty with a strength ``lam``, a factor of R(w)."""

    @property
    def lam(self) -> float:
        """The strength, at least 0."""
        ...


def is_adaptive(penalty: Penalty) -> TypeGuard[AdaptivePenalty]:
    """Whether the penalty has ``adaptive = True``. Rules check its members at construction."""
    return penalty.adaptive
