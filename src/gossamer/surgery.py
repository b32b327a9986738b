"""Changing a layer's support: the only place, besides the optimizer, that changes what a parameter holds and what is indexed by it.

Units kept by the old and the new support keep their value and the optimizer's state for them, whatever its shape: entries of the
parameter's shape, and under compact storage every entry whose first dimension counts the blocks (factored moments of tiles). Units that
are born start at 0 with zero state, or with a state that is given. Where the number of blocks stays the same, values and state are written
in place, so data_ptr() does not change (foreach, compiled graphs and distributed buckets stay valid).

A :class:`Keeper` knows to which support an optimizer's state belongs. It takes the state along when the support has changed behind the
optimizer's back (``load_state_dict`` of the model), and tells by the support's digest when the state itself was loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._errors import UsageError
from .layouts import Layout, gather, scatter
from .support import Support

if TYPE_CHECKING:
    from .layers import SparseLayer

TAG = "support"  # in a saved state of an optimizer: the tag of the support that a parameter's state belongs to


@torch.no_grad()
def set_support_(
    layer: SparseLayer,
    new: Support,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    born: Mapping[str, Tensor] | None = None,
) -> None:
    """Gives ``layer`` another support, carrying its values and the optimizer's state for them.

    Args:
        born: state of a block that is born, by name, each with a first dimension of 1; zeros where nothing is given.

    The gradient of the layer's values is dropped (None): it belongs to the old support.
    """
    old = layer.support
    if layer.layout.follows:
        what = f"the support of layout {layer.layout.name} is where its values are not zero, and what is born is zero"
        raise UsageError("set_support_", what, remedy='layout="csr" or "masked"; or change the values')
    if (new.shape, new.block) != (old.shape, old.block):
        raise UsageError(
            "set_support_", f"the layer is {old.shape} in blocks of {old.block}", got=(new.shape, new.block)
        )
    holders = [] if optimizer is None else nested(optimizer)
    keepers = [KEEPERS[holder] for holder in holders if holder in KEEPERS]
    for keeper in keepers:
        keeper.follow(layer)
    new = new.to(old.col.device)
    came_from = old.find(new.ids())
    for holder in holders:
        carry_state_(layer, holder, old, new, came_from, born)
    layer.values.grad = None
    write_(layer.values, carry(layer.values, layer.layout, new, came_from))
    layer.adopt_(new)
    for keeper in keepers:
        keeper.moved(layer)


def carry_state_(
    layer: SparseLayer,
    optimizer: torch.optim.Optimizer,
    old: Support,
    new: Support,
    came_from: Tensor | None = None,
    born: Mapping[str, Tensor] | None = None,
) -> None:
    """Moves the optimizer's state of a layer's values from one support to another."""
    if layer.values not in optimizer.state:
        return
    came_from = old.find(new.ids()) if came_from is None else came_from
    state = optimizer.state[layer.values]
    for key, entry in state.items():
        if torch.is_tensor(entry) and is_indexed(entry, layer, old):
            moved = carry(entry, layer.layout, new, came_from, None if born is None else born.get(key))
            state[key] = entry.copy_(moved) if entry.shape == moved.shape else moved


def is_indexed(entry: Tensor, layer: SparseLayer, s: Support) -> bool:
    """Whether a tensor of the optimizer's state has a place for every block of ``s``."""
    if layer.layout.storage == "dense":
        return entry.shape == layer.dense_shape
    return entry.dim() > 0 and entry.shape[0] == s.n


def carry(stored: Tensor, layout: Layout, new: Support, came_from: Tensor, fill: Tensor | None = None) -> Tensor:
    """``stored`` (a parameter or its state) on the new support; ``came_from`` (n_new,): position in the old one, -1 if born (then ``fill``,
    or 0)."""
    born = came_from < 0
    if layout.storage == "dense":
        compact = gather(stored, new)
        compact[born] = 0 if fill is None or fill.shape[1:] != compact.shape[1:] else fill.to(compact.dtype)
        return scatter(compact, new).view(stored.shape)
    if stored.shape[0] == 0:
        compact = stored.new_zeros(new.n, *stored.shape[1:])
    else:
        compact = stored[came_from.clamp(min=0)]
        compact[born] = 0
    if fill is not None and fill.shape[1:] == compact.shape[1:]:
        compact[born] = fill.to(compact.dtype)
    return compact


def write_(parameter: Tensor, data: Tensor) -> None:
    """Gives a parameter other data, in place where the shape allows, else of another shape.

    While a graph of an earlier step is alive (a loop that still holds its last loss), autograd remembers the old shape in the parameter's
    gradient accumulator, and forgets it only when the dtype changes: so the dtype changes on the way.
    """
    if data.shape == parameter.shape:
        parameter.copy_(data)
        return
    dtype = parameter.dtype
    parameter.data = torch.empty(
        0, dtype=torch.float32 if dtype != torch.float32 else torch.float64, device=parameter.device
    )
    parameter.data = data.to(dtype)


# -------------------------------------------------------------------- whose state it is


class Keeper:
    """Knows of one optimizer to which support its state of each layer's values belongs, and takes it along.

    ``held`` is a Support; or, after the optimizer has loaded a state, the tag that came with it; or None: that of the next step, whatever
    it is then. Made by :func:`keeper_of`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = weakref.ref(optimizer)
        self.layers: dict[int, SparseLayer] = {}  # by the identity of their values
        self.held: dict[int, Support | int | None] = {}
        if not takes_hooks(optimizer):
            return  # a wrapper: the optimizer inside calls
        optimizer.register_step_pre_hook(_weakly(self, Keeper._before_step))
        optimizer.register_state_dict_pre_hook(_weakly(self, Keeper._tag))
        optimizer.register_state_dict_post_hook(_weakly(self, Keeper._untag))
        optimizer.register_load_state_dict_post_hook(_weakly(self, Keeper._loaded))

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Whose state it is."""
        optimizer = self._optimizer()
        assert optimizer is not None  # its hooks call
        return optimizer

    def add(self, layers: Iterable[SparseLayer]) -> None:
        """Layers whose support may change. The state there is belongs to the supports they have now, unless it is known better."""
        for layer in layers:
            self.layers[id(layer.values)] = layer
            state = self.optimizer.state
            tag = state[layer.values].pop(TAG, None) if layer.values in state else None  # loaded before anybody kept it
            self.held.setdefault(id(layer.values), layer.support if tag is None else tag)

    def moved(self, layer: SparseLayer) -> None:
        """The state has been brought to the layer's support."""
        if id(layer.values) in self.layers:
            self.held[id(layer.values)] = layer.support

    def is_loading(self, layer: SparseLayer) -> bool:
        """Whether a state has been loaded whose support is not the layer's: the layer may be loaded after it."""
        held = self.held.get(id(layer.values))
        return isinstance(held, int) and held != layer.support.tag

    def follow(self, layer: SparseLayer, born: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """Brings the state of one layer to the support that the layer has now; ids of the blocks that are new in it, None if there are none.

        ``born``: as in :func:`set_support_`.

        Raises: UsageError where the state was loaded and belongs to a support that the layer does not have.
        """
        key, now = id(layer.values), layer.support
        held = self.held.get(key)
        if held is now or key not in self.layers:
            return None
        if isinstance(held, int) and held != now.tag and self.optimizer.state.get(layer.values):
            what = "the state that the optimizer has loaded belongs to another support than the layer has"
            got = f"a layer of {tuple(layer.dense_shape)}"
            remedy = "load the model and the optimizer of the same step, or reset the optimizer's state"
            raise UsageError("optimizer", what, got=got, remedy=remedy)
        self.held[key] = now
        if not isinstance(held, Support) or now.same(held):
            return None
        ids = now.ids()
        came_from = held.find(ids)
        with torch.no_grad():
            carry_state_(layer, self.optimizer, held, now, came_from, born)
        return ids[came_from < 0]

    # ---------------------------------------------------------------- hooks

    def _before_step(self, *_: Any) -> None:
        for layer in self.layers.values():
            self.follow(layer)

    def _tag(self, optimizer: torch.optim.Optimizer) -> None:
        for key, layer in self.layers.items():
            if optimizer.state.get(layer.values):
                if not isinstance(self.held[key], int):
                    self.follow(layer)
                held = self.held[key]
                optimizer.state[layer.values][TAG] = held if isinstance(held, int) else layer.support.tag

    def _untag(self, optimizer: torch.optim.Optimizer, _state: Any) -> None:
        for layer in self.layers.values():
            if layer.values in optimizer.state:
                state = optimizer.state[layer.values]
                optimizer.state[layer.values] = {
                    key: entry for key, entry in state.items() if key != TAG
                }  # what is saved keeps its own

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        for key, layer in self.layers.items():
            self.held[key] = optimizer.state[layer.values].pop(TAG, None) if layer.values in optimizer.state else None


KEEPERS: weakref.WeakKeyDictionary[torch.optim.Optimizer, Keeper] = weakref.WeakKeyDictionary()


def keeper_of(optimizer: torch.optim.Optimizer) -> Keeper:
    """The keeper of an optimizer, made at the first call."""
    if optimizer not in KEEPERS:
        KEEPERS[optimizer] = Keeper(optimizer)
    return KEEPERS[optimizer]


def keepers_of(optimizer: torch.optim.Optimizer) -> list[Keeper]:
    """Those of an optimizer and of the optimizers that it wraps (look-ahead, a trainer's)."""
    return [keeper_of(holder) for holder in nested(optimizer)]


def nested(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer, then what it wraps, outermost first; each with a state of its own. A wrapper that only hands on the state of the one
    inside is left out."""
    found, ahead = [], [optimizer]
    while ahead:
        one = ahead.pop(0)
        inside = [
            value for value in vars(one).values() if isinstance(value, torch.optim.Optimizer) and value not in found
        ]
        ahead += inside
        state = _state_of(one)
        if state is not None and not any(state is _state_of(other) for other in inside):
            found.append(one)
    return found


def _state_of(optimizer: torch.optim.Optimizer) -> Any:
    """The state of an optimizer; None for a wrapper that never called torch's constructor and has none."""
    try:
        return optimizer.state
    except AttributeError:
        return None


def takes_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch's constructor has run: some wrappers never call it."""
    return "_optimizer_step_pre_hooks" in vars(optimizer)


def _weakly(owner: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does not keep its owner alive."""
    reference = weakref.ref(owner)

    def hook(*args: Any) -> Any:
        living = reference()
        return None if living is None else method(living, *args)

    return hook
