"""The protocol of the objects that take the place of ``optimizer.step()``: :class:`Rewirer` and :class:`Multilevel`.

``fit``, ledgers, checkpoints, diagnoses and the command line use only this protocol.
"""

# pyright: strict

from typing import Any, Protocol

from ..layers import SparseLayer
from ..topology import Sensing
from .events import Event


class Stepper(Protocol):
    """Steps an optimizer, and changes supports on some steps."""

    t: int  # number of steps made
    last: Event | None  # the event of the last step; None if it had no event
    layers: dict[str, SparseLayer]  # the layers whose supports may change, by name

    @property
    def sensing(self) -> dict[str, int]:
        """Blocks off the support whose gradient the step in progress measures, per layer; empty on plain steps."""
        ...

    @property
    def sensing_bytes(self) -> int:
        """Bytes held for sensing."""
        ...

    def is_event(self, t: int) -> bool:
        """Whether supports change at step t = 1, 2, ..."""
        ...

    def sense(self, t: int) -> Sensing | None:
        """What the backward pass of step t measures off the support; None on plain steps."""
        ...

    def step(self) -> Any:
        """One step of the optimizer, then the event, if the step has one. Returns the result of the optimizer.

        Raises: Diverged if weights are NaN or infinite at an event.
        """
        ...

    def discard(self) -> None:
        """Forgets what the backward passes since the last step have measured."""
        ...

    def release(self) -> None:
        """Stops observing the layers. The next owner of the layers calls this."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume bit for bit, together with the states of the model and the optimizer."""
        ...

    def problems(self, state: Any) -> list[str]:
        """Sentences that say why a saved state cannot be loaded; [] if it can."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state. Raises UsageError where it belongs to other layers or settings."""
        ...
