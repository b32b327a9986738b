"""Averages of the weights of a model whose supports change: of connections, not of positions.

    every update   a <- a + (w - a) / (updates + 1)     equal weighting, as stochastic weight averaging (Izmailov et al. 2018) takes it
                   a <- decay a + (1 - decay) w         exponential, with ``decay``; the first update copies

a and w stand for the dense weights, zero off the support. The average holds a on the model's present support. Before each update it moves
there: connections that left are forgotten, connections that were born begin at 0. So it equals the average of the dense weights on the
present support for every connection that has not left and come back. Nothing has the dense size.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError, is_real
from ..layers import SparseLayer
from ..layouts import carry, write_


class AveragedModel(nn.Module):
    """A copy of a model that holds the average of its weights: the interface of ``torch.optim.swa_utils.AveragedModel``.

    Args:
        model: any model; its sparse layers are averaged connection by connection, whatever changes their supports, all else as torch does.
        device: where the average lives (None: where the model is).
        decay: in [0, 1), of the exponential average; None weighs all updates equally.
        use_buffers: average floating-point buffers (batch normalisation's statistics) instead of copying them; or leave them to
            ``torch.optim.swa_utils.update_bn``.

    ``module`` is the averaged model, with supports of its own: evaluate, save or :func:`~gossamer.densify` it like any other.
    ``state_dict`` holds the number of updates too.

    Raises: UsageError where the model is not the one that it was made of.
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
        if decay is not None and (not is_real(decay) or not 0.0 <= decay < 1.0 or math.isnan(decay)):
            raise UsageError(
                "AveragedModel", "decay lies in [0, 1)", got=decay, remedy="None weighs all updates equally"
            )
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
        """Takes the model's present weights into the average."""
        pairs = self._pairs(model)
        for mine, theirs in pairs:
            if isinstance(mine, SparseLayer):
                _follow(mine, theirs)
        n = int(self.n_averaged)
        share = 1.0 if n == 0 else 1.0 / (n + 1) if self.decay is None else 1.0 - self.decay
        done: set[int] = set()  # a tensor that stands in several places is averaged once
        for mine, theirs in pairs:
            for name, a in mine._parameters.items():
                if a is not None and id(a) not in done:
                    done.add(id(a))
                    a.lerp_(theirs._parameters[name].to(a.device, a.dtype), share)  # type: ignore[union-attr]
            for name, b in mine._buffers.items():
                if (
                    b is not None
                    and id(b) not in done
                    and not (isinstance(mine, SparseLayer) and name in ("crow", "col"))
                ):
                    done.add(id(b))
                    w = theirs._buffers[name].to(b.device)  # type: ignore[union-attr]
                    b.lerp_(w, share) if self.use_buffers and b.is_floating_point() else b.copy_(w)
        self.n_averaged += 1

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """The modules of the average beside those of the model."""
        mine, theirs = dict(self.module.named_modules()), dict(model.named_modules())
        reasons = [f"the average has no {name!r}" for name in theirs if name not in mine]
        reasons += [f"the model has no {name!r}" for name in mine if name not in theirs]
        for name in mine.keys() & theirs.keys():
            a, b = mine[name], theirs[name]
            if isinstance(a, SparseLayer) and isinstance(b, SparseLayer):
                same = (a.dense_shape, a.block, a.layout.name) == (b.dense_shape, b.block, b.layout.name)
            else:
                same = not isinstance(a, SparseLayer) and not isinstance(b, SparseLayer) and _shapes(a) == _shapes(b)
            if not same:
                reasons.append(f"{name!r} has another shape, block or layout, or other parameters")
        if reasons:
            what = "the model is not the one that this average was made of"
            raise UsageError(
                "AveragedModel",
                what,
                reasons=reasons[:5],
                remedy="update_parameters(model) with the model given at construction",
            )
        return [(mine[name], theirs[name]) for name in mine]


def _shapes(m: nn.Module) -> dict[str, torch.Size | None]:
    return {name: None if t is None else t.shape for name, t in {**m._parameters, **m._buffers}.items()}


def _follow(average: SparseLayer, layer: nn.Module) -> None:
    """Moves an average to the support that its layer has now."""
    assert isinstance(layer, SparseLayer)
    if average.layout.follows:
        return  # dense values: the average's own non-zeros are its support
    old, new = average.support, layer.support.to(average.values.device)
    if new.same(old):
        return
    write_(average.values, carry(average.values, average.layout, new, old.find(new.ids())))
    average.adopt_(new)


__all__ = ["AveragedModel"]
