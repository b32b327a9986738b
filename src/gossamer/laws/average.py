"""The law of averages of weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError
from ..layers import sparse_layers
from ..layouts import Layout
from ..topology import SET, TopologyLike
from ..training.average import AveragedModel
from .details import close, demand, nesterov
from .runs import Rewirers, Run, resolved


def check_average(
    rewirer: Rewirers,
    average: Callable[..., Any] = AveragedModel,
    *,
    topology: TopologyLike | None = None,
    layout: str | Layout = "csr",
) -> None:
    """An average of weights equals the average of the dense weights, on the current support.

    This holds for every connection that was not dropped and grown again. All other parameters have torch's average.

    Args:
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        average: ``gossamer.AveragedModel``, or a class with its signature and methods.
        topology: the topology; None is SET over 20 steps.
        layout: layout of the sparse layers.

    Raises: AssertionError.
    """
    topology = resolved(topology or SET(stop=20, every=2, drop_fraction=0.5))
    for decay in (None, 0.7):
        run, who = (
            Run(topology, rewirer, layout, (1, 1), nesterov, seed=0),
            f"topology {topology.name!r}, decay {decay}",
        )
        mean = average(run.model, decay=decay)
        dense: dict[str, Tensor] = {}
        gone = {name: torch.zeros(layer.support.shape, dtype=torch.bool) for name, layer in run.layers.items()}
        for t in range(1, topology.stop + 1):
            before = {name: layer.support.mask() for name, layer in run.layers.items()}
            run.train(t, t)
            mean.update_parameters(run.model)
            for name, now in _dense_weights(run.model).items():
                weight = 1.0 if t == 1 else 1 / t if decay is None else 1 - decay
                dense[name] = now if t == 1 else dense[name] + weight * (now - dense[name])
            for name, layer in run.layers.items():
                gone[name] |= before[name] & ~layer.support.mask()
        try:
            held = _dense_weights(mean.module)
        except UsageError as refusal:
            raise AssertionError(f"{who}: must be an average of this model: {refusal}") from refusal
        for name, expected in dense.items():
            got, where = held[name], f"{who}, {name}"
            if name in run.layers:
                here = run.layers[name].support
                follows = mean.module.get_submodule(name).support.same(here)
                demand(follows, f"{where}: the average must have the current support")
                sure = here.mask() & ~gone[name]
                got, expected = got.view(here.shape)[sure], expected.view(here.shape)[sure]
            close(got, expected, f"{where}: must be the average of the dense weights", 1e-9)


def _dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of sparse layers as dense matrices, and all other parameters, by name."""
    layers = sparse_layers(model)
    weights = {name: layer.to_dense().flatten(1).clone() for name, layer in layers.items()}
    values = {f"{name}.values" if name else "values" for name in layers}
    return {**weights, **{name: p.detach().clone() for name, p in model.named_parameters() if name not in values}}
