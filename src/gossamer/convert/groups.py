# pyright: strict
"""Parameter groups for optimizers: the step size of each sparse layer can follow its density."""

from typing import Any

from torch import nn

from .._errors import UsageError
from ..layers import sparse_layers


def parameter_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None, density_exponent: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer.

        layer l of density d_l:                lr_l = lr d_l^-a,  wd_l = wd d_l^a,  a = density_exponent
        dense weights:                         lr, wd
        parameters of fewer than 2 dimensions: lr, 0

    The pre-activation of a sparse neuron moves by lr sum_{j in S} x_j^2 per unit of output gradient. It moves less at a
    lower density; a larger step size makes up for it. The decay per step, lr wd, does not change. a = 0 gives one step
    size for all, 0.25 is safe for SGD, and Adam-type optimizers work up to 1 (after Dey, Bergsma, Hestness, arXiv
    2405.15743).

    The groups have two more keys for a :class:`~gossamer.SparseOptimizer`. ``penalised``: the values of sparse layers
    (in a model without sparse layers, all weights of two or more dimensions). ``compact``: values in compact storage.

    Args:
        model: a model, sparse or dense.
        lr: step size; required unless ``density_exponent`` is 0.
        weight_decay: decay of the weights; None takes the default of the optimizer. Biases and normalisation
            parameters do not decay.
        density_exponent: the exponent a.
    """
    if density_exponent and lr is None:
        raise UsageError("parameter_groups", "density_exponent scales the step size, so it needs lr", remedy="give lr")
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for name, layer in sparse_layers(model).items():
        if layer.values in seen or not layer.values.requires_grad:
            continue
        seen.add(layer.values)
        scale = layer.density**density_exponent
        decay = None if weight_decay is None else weight_decay * scale
        step = None if lr is None else lr / scale
        groups.append(
            _group([layer.values], name, decay, step, penalised=True, compact=layer.layout.storage == "compact")
        )
    rest = [p for p in model.parameters() if p.requires_grad and p not in seen]
    if weights := [p for p in rest if p.dim() >= 2]:
        groups.append(_group(weights, "dense weights", weight_decay, lr, penalised=not seen))
    if others := [p for p in rest if p.dim() < 2]:
        groups.append(_group(others, "biases and normalisation", 0.0, lr))
    return groups


def _group(
    params: list[nn.Parameter],
    name: str,
    weight_decay: float | None,
    lr: float | None,
    *,
    penalised: bool = False,
    compact: bool = False,
) -> dict[str, Any]:
    """One group. A setting that is None is omitted: the optimizer then takes its default."""
    given = {"weight_decay": weight_decay, "lr": lr}
    marks = {"name": name, "penalised": penalised, "compact": compact}
    return {"params": params, **marks, **{key: value for key, value in given.items() if value is not None}}
