"""The state that a torch optimizer keeps for the values of a layer: which entries are indexed by blocks, and how they
are carried to another support.

No optimizer is known by name. An entry is indexed if it has the parameter's shape. Under compact storage it is enough
that its first dimension counts the blocks (factored moments of tiles).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .layers import SparseLayer
from .layouts import carry
from .support import Support


def carry_state_(
    layer: SparseLayer,
    optimizer: torch.optim.Optimizer,
    old: Support,
    new: Support,
    came_from: Tensor | None = None,
    newborn: Mapping[str, Tensor] | None = None,
) -> None:
    """Carries the optimizer's state of a layer's values from one support to another, in place if the shape stays.

    Args:
        came_from: position of each block of ``new`` in ``old``, -1 for newborn blocks; computed if None.
        newborn: by entry, the state of a newborn block, first dimension 1; zeros for entries that are not given.
    """
    if layer.values not in optimizer.state:
        return
    came_from = old.find(new.ids()) if came_from is None else came_from
    state: dict[str, Any] = optimizer.state[layer.values]
    for key, entry in state.items():
        if torch.is_tensor(entry) and is_indexed(entry, layer, old):
            moved = carry(entry, layer.layout, new, came_from, None if newborn is None else newborn.get(key))
            state[key] = entry.copy_(moved) if entry.shape == moved.shape else moved


def is_indexed(entry: Tensor, layer: SparseLayer, s: Support) -> bool:
    """Whether an entry of the optimizer's state is indexed by the blocks of ``s``."""
    if layer.layout.storage == "dense":
        return entry.shape == layer.dense_shape
    return entry.dim() > 0 and entry.shape[0] == s.n
