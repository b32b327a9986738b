# pyright: reportUnknownMemberType=false
"""A :class:`Keeper` records to which support an optimizer's state of each layer belongs.

If the support has changed without the optimizer (``load_state_dict`` of the model), it carries the state to the new
support. A saved state contains a tag, the first bits of the support's digest. After a load the keeper compares it.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._errors import UsageError
from .layers import SparseLayer
from .optimizer_state import carry_state_
from .support import Support

TAG = "support"  # key in a saved state of an optimizer: the tag of the support to which a parameter's state belongs


class Keeper:
    """Records, for one optimizer, to which support its state of each layer's values belongs. See :func:`keeper_of`.

    ``held`` has one entry for each layer: the support; after the optimizer has loaded a state, the tag that was saved
    with it; or None if that state had no tag: then it belongs to the support that the layer has at the next step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = weakref.ref(optimizer)
        self.layers: dict[int, SparseLayer] = {}  # by the identity of their values
        self.held: dict[int, Support | int | None] = {}
        if "_optimizer_step_pre_hooks" not in vars(optimizer):
            return  # a wrapper that never called torch's constructor takes no hooks; the wrapped optimizer has them
        optimizer.register_step_pre_hook(_weakly(self, Keeper._before_step))
        optimizer.register_state_dict_pre_hook(_weakly(self, Keeper._add_tags))
        optimizer.register_state_dict_post_hook(_weakly(self, Keeper._remove_tags))
        optimizer.register_load_state_dict_post_hook(_weakly(self, Keeper._loaded))

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose state this is."""
        optimizer = self._optimizer()
        assert optimizer is not None  # only its hooks and its owner call this, and they keep it alive
        return optimizer

    def add(self, layers: Iterable[SparseLayer]) -> None:
        """Adds layers whose support may change. Their present state belongs to its tag, or to the present support."""
        for layer in layers:
            self.layers[id(layer.values)] = layer
            tag = self._tag_of(layer)  # present if the state was loaded before this keeper was made
            self.held.setdefault(id(layer.values), layer.support if tag is None else tag)

    def moved(self, layer: SparseLayer) -> None:
        """Records that the state has been carried to the layer's present support."""
        if id(layer.values) in self.layers:
            self.held[id(layer.values)] = layer.support

    def is_loading(self, layer: SparseLayer) -> bool:
        """Whether the loaded state belongs to another support. Then the layer itself may still be loaded."""
        held = self.held.get(id(layer.values))
        return isinstance(held, int) and held != layer.support.tag

    def follow(self, layer: SparseLayer, newborn: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """Carries the state of one layer to its present support.

        Args:
            newborn: as in :func:`~gossamer.optimizer_state.carry_state_`.

        Returns: the ids of the newborn blocks, (k,) int64; None if the support has not changed.
        Raises: UsageError if a loaded state belongs to another support than the layer has.
        """
        key, now = id(layer.values), layer.support
        held = self.held.get(key)
        if held is now or key not in self.layers:
            return None
        if isinstance(held, int) and held != now.tag and self.optimizer.state.get(layer.values):
            what = "the loaded state of the optimizer belongs to another support than the layer has"
            remedy = "load the model and the optimizer of the same step, or reset the optimizer's state"
            raise UsageError("optimizer", what, got=f"a layer of {tuple(layer.dense_shape)}", remedy=remedy)
        self.held[key] = now
        if not isinstance(held, Support) or now.same(held):
            return None
        ids = now.ids()
        came_from = held.find(ids)
        with torch.no_grad():
            carry_state_(layer, self.optimizer, held, now, came_from, newborn)
        return ids[came_from < 0]

    # ---------------------------------------------------------------- hooks

    def _before_step(self, *_: object) -> None:
        for layer in self.layers.values():
            self.follow(layer)

    def _add_tags(self, optimizer: torch.optim.Optimizer) -> None:
        for key, layer in self.layers.items():
            if optimizer.state.get(layer.values):
                if not isinstance(self.held[key], int):
                    self.follow(layer)
                held = self.held[key]
                optimizer.state[layer.values][TAG] = held if isinstance(held, int) else layer.support.tag

    def _remove_tags(self, optimizer: torch.optim.Optimizer, _state: object) -> None:
        for layer in self.layers.values():
            if layer.values in optimizer.state:  # a new dict, so that the dict that is being saved keeps its tag
                state = optimizer.state[layer.values]
                optimizer.state[layer.values] = {key: entry for key, entry in state.items() if key != TAG}

    def _loaded(self, _optimizer: torch.optim.Optimizer) -> None:
        for key, layer in self.layers.items():
            self.held[key] = self._tag_of(layer)

    def _tag_of(self, layer: SparseLayer) -> int | None:
        """Removes the tag from the state of a layer and returns it; None if there is none."""
        state = self.optimizer.state
        return state[layer.values].pop(TAG, None) if layer.values in state else None


KEEPERS: weakref.WeakKeyDictionary[torch.optim.Optimizer, Keeper] = weakref.WeakKeyDictionary()


def keeper_of(optimizer: torch.optim.Optimizer) -> Keeper:
    """The keeper of an optimizer. The first call makes it."""
    if optimizer not in KEEPERS:
        KEEPERS[optimizer] = Keeper(optimizer)
    return KEEPERS[optimizer]


def keepers_of(optimizer: torch.optim.Optimizer) -> list[Keeper]:
    """The keepers of an optimizer and of those that it wraps, outermost first."""
    return [keeper_of(holder) for holder in nested(optimizer)]


def nested(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer and the optimizers that it wraps (look-ahead, a trainer's wrapper), outermost first.

    A wrapper that only forwards the state of the wrapped optimizer is left out.
    """
    found: list[torch.optim.Optimizer] = []
    ahead = [optimizer]
    while ahead:
        one = ahead.pop(0)
        values = list(vars(one).values())
        inside = [value for value in values if isinstance(value, torch.optim.Optimizer) and value not in found]
        ahead += inside
        state = _state_of(one)
        if state is not None and not any(state is _state_of(other) for other in inside):
            found.append(one)
    return found


def _state_of(optimizer: torch.optim.Optimizer) -> Any:
    """The state of an optimizer; None for a wrapper that has none, because it never called torch's constructor."""
    try:
        return optimizer.state
    except AttributeError:
        return None


def _weakly(keeper: Keeper, method: Callable[..., None]) -> Callable[..., None]:
    """A hook that does not keep its keeper alive."""
    reference = weakref.ref(keeper)

    def hook(*args: Any) -> None:
        if (living := reference()) is not None:
            method(living, *args)

    return hook
