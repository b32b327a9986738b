"""The average of the weights of a model whose supports change. It averages by connection, not by position in memory.

    every update   a <- a + (w - a) / (updates + 1)     equal weights: stochastic weight averaging (Izmailov 2018)
                   a <- decay a + (1 - decay) w         exponential, with ``decay``; the first update copies

a and w are the dense weights, zero off the support. The average stores a on the model's present support. Before each
update it is carried there: dropped connections are removed, grown connections begin at 0. On the present support it
equals the average of the dense weights, except for connections that were dropped and grown again. Nothing has the
dense size.
"""

# pyright: strict

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError, is_real
from ..layers import SparseLayer
from ..layouts import carry, write_


class AveragedModel(nn.Module):
    """A copy of a model that holds the average of its weights. Its interface is that of
    ``torch.optim.swa_utils.AveragedModel``.

    Args:
        model: any model. Sparse layers are averaged connection by connection, everything else as torch does.
        device: the device of the average; None is the device of the model.
        decay: of the exponential average, in [0, 1); None gives all updates the same weight.
        use_buffers: whether floating-point buffers (statistics of batch normalisation) are averaged too. Otherwise
            they are copied, or ``torch.optim.swa_utils.update_bn`` computes them.

    ``module`` is the averaged model, with its own supports. It can be evaluated, saved or densified as any other model.
    ``state_dict`` holds the number of updates too.

    Raises: UsageError if ``update_parameters`` gets another model than the one given here.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | None = None,
        *,
        decay: float | None = None,
        use_buffers: bool = False,
    ):
        super().__init__()
        if decay is not None and (not is_real(decay) or not 0.0 <= decay < 1.0):
            remedy = "None gives all updates the same weight"
            raise UsageError("AveragedModel", "decay must lie in [0, 1)", got=decay, remedy=remedy)
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.decay, self.use_buffers = decay, use_buffers
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged model's output."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Adds the model's present weights to the average."""
        pairs = self._pairs(model)
        for own, other in pairs:
            if isinstance(own, SparseLayer) and isinstance(other, SparseLayer):
                _follow(own, other)
        n = int(self.n_averaged)
        weight = 1.0 if n == 0 else 1.0 / (n + 1) if self.decay is None else 1.0 - self.decay
        done: set[int] = set()  # a tensor that several modules share is averaged once
        for own, other in pairs:
            parameters, buffers = dict(other.named_parameters(recurse=False)), dict(other.named_buffers(recurse=False))
            for name, a in own.named_parameters(recurse=False):
                if id(a) not in done:
                    done.add(id(a))
                    a.lerp_(parameters[name].to(a.device, a.dtype), weight)
            for name, b in own.named_buffers(recurse=False):
                if id(b) not in done and not (isinstance(own, SparseLayer) and name in ("crow", "col")):
                    done.add(id(b))
                    w = buffers[name].to(b.device)
                    b.lerp_(w, weight) if self.use_buffers and b.is_floating_point() else b.copy_(w)
        self.n_averaged += 1

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of a module of the average and the module of the model."""
        own, others = _modules(self.module), _modules(model)
        reasons = [f"the average has no {name!r}" for name in others if name not in own]
        reasons += [f"the model has no {name!r}" for name in own if name not in others]
        different = [name for name in own.keys() & others.keys() if _form(own[name]) != _form(others[name])]
        reasons += [f"{name!r} has another shape, block or layout, or other parameters" for name in different]
        if reasons:
            what = "the model does not fit the model that this average was made from"
            remedy = "update_parameters(model) with the model given at construction"
            raise UsageError("AveragedModel", what, reasons=reasons[:5], remedy=remedy)
        return [(own[name], others[name]) for name in own]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]  # torch types it in part


def _form(m: nn.Module) -> object:
    """What must be equal for a module of the average and the module of the model."""
    if isinstance(m, SparseLayer):
        return m.dense_shape, m.block, m.layout.name
    tensors = [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]
    return {name: t.shape for name, t in tensors}


def _follow(average: SparseLayer, layer: SparseLayer) -> None:
    """Carries the average of a layer to the layer's present support."""
    if average.layout.follows:
        return  # dense values: the support of the average is where the averaged values are not zero
    old, new = average.support, layer.support.to(average.values.device)
    if new.same(old):
        return
    write_(average.values, carry(average.values, average.layout, new, old.find(new.ids())))
    average.adopt_(new)
