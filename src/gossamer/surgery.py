"""Changing a layer's support: the only place that changes what a parameter holds besides the optimizer.

Units kept by the old and the new support keep their value and every optimizer-state tensor *of the parameter's shape* (momenta, moments:
whatever the optimizer calls them); units that are born start at 0 with zero state. Where the number of units stays the same, values and
state are written in place, so data_ptr() does not change (foreach, compiled graphs and distributed buckets stay valid).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import Unfit
from .layouts import Layout, gather, scatter
from .support import Support

if TYPE_CHECKING:
    from .layers import SparseLayer


@torch.no_grad()
def set_support_(layer: SparseLayer, new: Support, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Gives ``layer`` another support, carrying its values and the optimizer's state for them.

    The gradient of the layer's values is dropped (None): it belongs to the old support.
    """
    old = layer.support
    if layer.layout.follows:
        what = f"the support of layout {layer.layout.name} is where its values are not zero, and what is born is zero"
        raise Unfit("set_support_", what, remedy='layout="csr" or "masked"; or change the values')
    if (new.shape, new.unit) != (old.shape, old.unit):
        raise Unfit("set_support_", f"the layer is {old.shape} in units of {old.unit}", got=(new.shape, new.unit))
    new = new.to(old.col.device)
    came_from = old.find(new.ids())
    values = layer.values
    if optimizer is not None and values in optimizer.state:
        state = optimizer.state[values]
        for key, entry in state.items():
            if torch.is_tensor(entry) and entry.shape == values.shape:
                state[key] = _written(entry, carry(entry, layer.layout, new, came_from))
    values.grad = None
    moved = carry(values, layer.layout, new, came_from)
    write_(values, moved)
    for name, index in layer.index_of(new).items():  # replaced, never overwritten: a Support that somebody holds does not change
        setattr(layer, name, index)


def carry(stored: Tensor, layout: Layout, new: Support, came_from: Tensor) -> Tensor:
    """``stored`` (a parameter or its state) on the new support; ``came_from`` (n_new,): position in the old one, -1 if born (then 0)."""
    born = came_from < 0
    if layout.storage == "dense":
        compact = gather(stored, new)
        compact[born] = 0
        return scatter(compact, new).view(stored.shape)
    if stored.shape[0] == 0:
        return stored.new_zeros(new.n, *stored.shape[1:])
    compact = stored[came_from.clamp(min=0)]
    compact[born] = 0
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
    parameter.data = torch.empty(0, dtype=torch.float32 if dtype != torch.float32 else torch.float64, device=parameter.device)
    parameter.data = data.to(dtype)


def _written(old: Tensor, fresh: Tensor) -> Tensor:
    """``fresh`` written into ``old`` where it fits, or ``fresh`` itself."""
    return old.copy_(fresh) if old.shape == fresh.shape else fresh
