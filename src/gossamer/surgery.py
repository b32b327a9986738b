"""Surgery: changes a layer's support. Apart from the optimizer, only surgery changes the values and their state.

Blocks that are in both supports keep their values and their optimizer state. Newborn blocks start at 0, with zero
state or with a given state. If the number of blocks stays the same, values and state are written in place, so
data_ptr() does not change (foreach, compiled graphs and distributed buckets stay valid).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ._errors import UsageError
from .keeper import KEEPERS, nested
from .layers import SparseLayer
from .layouts import carry, write_
from .optimizer_state import carry_state_
from .support import Support


@torch.no_grad()
def set_support_(
    layer: SparseLayer,
    new: Support,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    newborn: Mapping[str, Tensor] | None = None,
) -> None:
    """Gives ``layer`` another support, and carries its values and the optimizer's state to it.

    Args:
        new: of the same shape and block as the layer's present support.
        optimizer: the optimizer of the layer's values, if it has state.
        newborn: by entry, the optimizer's state of a newborn block, first dimension 1; zeros where nothing is given.

    The gradient becomes None: it was of the old support. Raises: UsageError if layout or shape do not allow it.
    """
    old = layer.support
    if layer.layout.follows:
        where = "the support is where the values are not zero, so a newborn block of value 0 cannot be in it"
        what = f"under layout {layer.layout.name} {where}"
        raise UsageError("set_support_", what, remedy='layout="csr" or "masked"; or change the values')
    if (new.shape, new.block) != (old.shape, old.block):
        what = f"the new support must have shape {old.shape} and block {old.block}, as the layer has"
        raise UsageError("set_support_", what, got=(new.shape, new.block))
    holders = [] if optimizer is None else nested(optimizer)
    keepers = [KEEPERS[holder] for holder in holders if holder in KEEPERS]
    for keeper in keepers:
        keeper.follow(layer)  # the state may belong to a support before the old one
    new = new.to(old.col.device)
    came_from = old.find(new.ids())
    for holder in holders:
        carry_state_(layer, holder, old, new, came_from, newborn)
    layer.values.grad = None
    write_(layer.values, carry(layer.values, layer.layout, new, came_from))
    layer.adopt_(new)
    for keeper in keepers:
        keeper.moved(layer)
