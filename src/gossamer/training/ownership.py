"""The ownership of layers: the common part of Rewirer and Multilevel, the objects that change supports.

An owner has one :class:`Ownership`. It observes the layers and records the last known support of each. After a state
was loaded, it also records which supports must still be loaded. A copy of the owner makes a new ownership.
"""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .._errors import UsageError
from ..indexed import Owner
from ..keeper import Keeper, keepers_of, nested
from ..layers import SparseLayer
from ..observe import Observer, Seen
from ..support import Support

T = TypeVar("T", bound=Owner)


class Ownership(Generic[T]):
    """Makes ``owner`` the owner of the layers. Only a weak reference to it is kept.

    Args:
        owner: the new owner. The former owner is released.
        layers: by name.
        optimizer: its state is indexed by the layers' supports. The optimizers that it wraps are included.
        measure: (owner, name, dy, x) -> the measurement of one backward pass of a layer, or None.
        look: (owner, name), called in each observed forward pass: the layer may have another support.
    """

    def __init__(
        self,
        owner: T,
        layers: Mapping[str, SparseLayer],
        optimizer: torch.optim.Optimizer,
        measure: Callable[[T, str, Tensor, Tensor], Seen | None],
        look: Callable[[T, str], object],
    ):
        self.layers, self.optimizer = layers, optimizer
        for layer in layers.values():
            layer.give_to(owner)
        for keeper in self.keepers:
            keeper.add(layers.values())
        reference = weakref.ref(owner)
        self.observers = {
            name: Observer(
                layer,
                name or type(layer).__name__,
                partial(_measure, reference, measure, name),
                partial(_look, reference, look, name),
            )
            for name, layer in layers.items()
        }
        self.known = {name: layer.support for name, layer in layers.items()}
        self._handles: list[RemovableHandle] = []
        self.awaited: dict[
            str, int
        ] = {}  # tags of the supports that a loaded state belongs to, until the layers are used

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer that moves the values: the given optimizer, or the innermost optimizer that it wraps."""
        return nested(self.optimizer)[-1]

    @property
    def keepers(self) -> list[Keeper]:
        """The keepers of the optimizer's state, outermost first."""
        return keepers_of(self.optimizer)

    def has_changed(self, name: str) -> bool:
        """Whether a layer has another support than the last known one, or its support is awaited."""
        return name in self.awaited or self.layers[name].support is not self.known.get(name)

    def was_awaited(self, who: str, name: str) -> bool:
        """Whether a loaded state belongs to the layer's present support; False if no state was loaded.

        Raises: UsageError if the loaded state belongs to another support.
        """
        tag = self.awaited.get(name)
        if tag is not None and tag != self.layers[name].support.tag:
            what = f"the loaded state belongs to another support than layer {name!r} has"
            raise UsageError(who, what, remedy=f"load the model, the optimizer and the {who} of the same step")
        return tag is not None

    def know(self, name: str) -> Support:
        """Records the layer's present support as known, and returns it."""
        self.awaited.pop(name, None)
        self.known[name] = self.layers[name].support
        return self.known[name]

    def is_loading(self, name: str) -> bool:
        """Whether a state was loaded, here or into the optimizer, and the layer may still be loaded."""
        return name in self.awaited or any(keeper.is_loading(self.layers[name]) for keeper in self.keepers)

    def hook(self, owner: T, before: Callable[[T], object], after: Callable[[T], object]) -> None:
        """Calls ``before(owner)`` and ``after(owner)`` around every step of the inner optimizer, also if other code
        calls the step."""
        reference, inner = weakref.ref(owner), self.inner
        self._handles = [
            inner.register_step_pre_hook(partial(_hook, reference, before)),
            inner.register_step_post_hook(partial(_hook, reference, after)),
        ]

    def forget(self) -> None:
        """Forgets the measurements since the last step."""
        for observer in self.observers.values():
            observer.forget()

    def release(self) -> None:
        """Stops observing the layers."""
        for observer in self.observers.values():
            observer.stop()
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _measure(
    reference: "weakref.ref[T]",
    measure: Callable[[T, str, Tensor, Tensor], Seen | None],
    name: str,
    dy: Tensor,
    x: Tensor,
) -> Seen | None:
    owner = reference()
    return None if owner is None else measure(owner, name, dy, x)


def _hook(reference: "weakref.ref[T]", call: Callable[[T], object], *_: object) -> None:
    if (owner := reference()) is not None:
        call(owner)


def _look(reference: "weakref.ref[T]", look: Callable[[T, str], object], name: str) -> None:
    if (owner := reference()) is not None:
        with torch.no_grad():
            look(owner, name)
