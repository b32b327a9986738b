# pyright: strict
"""Parameter groups for optimizers: the step size of each sparse layer can follow its density."""

from typing import Any

from torch import nn

from .._errors import UsageError
from ..layers import sparse_layers


def parameter_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None, density_exponent: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer. The step of a sparse layer can follow its density; biases and
    normalisation do not decay.

    The pre-activation of a sparse neuron moves by lr sum_{j in S} x_j^2 per unit of output gradient: the movement
    shrinks with the density. So layer l of density d_l gets the step lr d_l^-a and the weight decay wd d_l^a (their
    product, the decay per step, is unchanged), with a = ``density_exponent``: 0 is one step size for all, 0.25 is a
    safe choice for SGD, Adam-type optimizers take up to 1 (after Dey, Bergsma, Hestness, arXiv 2405.15743). Dense
    weights keep (lr, wd); parameters of fewer than 2 dimensions get (lr, 0).

    The groups also have two keys for a :class:`~gossamer.SparseOptimizer`. ``penalised``: the values of sparse layers
    (or, in a model that has none, all weights of two or more dimensions). ``compact``: values that are stored compact.

    Args:
        lr: the step size; needed when ``density_exponent`` is not 0, otherwise optional.
        weight_decay: of weights; None leaves it to the optimizer's own. Biases and normalisation have none either way.
    """
    if density_exponent and lr is None:
        raise UsageError("parameter_groups", "density_exponent scales the step size, so it needs lr")
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
    """One group; settings that are None are left to the optimizer."""
    given = {"weight_decay": weight_decay, "lr": lr}
    marks = {"name": name, "penalised": penalised, "compact": compact}
    return {"params": params, **marks, **{key: value for key, value in given.items() if value is not None}}
