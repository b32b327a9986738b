# pyright: strict
"""The layers to measure, sparse ones or those that would become sparse, with their uses in a forward pass."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._budgets import Budget
from .._errors import UsageError
from .._geometry import module_geometry
from .._modules import eval_mode
from ..layers import SparseLayer, sparse_layers
from ..selection import Pick, select
from .record import Block, Shape
from .timing import Work

Input = Sequence[int] | Tensor | tuple[Tensor, ...]  # the shape of a batch, or a batch


class Workload(NamedTuple):
    """One layer of the model, and its uses in a forward pass."""

    name: str
    shape: Shape  # of the dense weight
    works: tuple[Work, ...]  # one for each use; empty if the forward pass does not use the layer
    block: Block
    density: float  # of blocks


class Layers(NamedTuple):
    """The layers to plan, by name, and the density of each."""

    modules: dict[str, nn.Module]
    densities: dict[str, float]


def layers_to_plan(
    who: str,
    model: nn.Module,
    density: float | None,
    budget: str | Budget | Mapping[str, float],
    block: Block,
    include: Pick | Iterable[Pick] | None,
    exclude: Pick | Iterable[Pick] | None,
) -> Layers:
    """With a density, the layers that ``sparsify`` would make sparse; without one, the sparse layers.

    Raises: UsageError if there is none.
    """
    if density is not None:
        given = select(who, model, density, budget, block, include, exclude)
        if not given.blocks:
            raise UsageError(who, "the budget gives every layer density 1", remedy="use a smaller density")
        return Layers(
            {name: given.owners[name] for name in given.blocks}, {name: given.density(name) for name in given.blocks}
        )
    layers = sparse_layers(model)
    if not layers:
        what = "the model has no sparse layer, and no density was given"
        raise UsageError(who, what, remedy="give density=, as for sparsify")
    if include is not None or exclude is not None:
        what = "include and exclude work only with a density"
        raise UsageError(who, what, remedy="omit them for a sparse model")
    return Layers({**layers}, {name: layer.support.density for name, layer in layers.items()})


def example_of(who: str, model: nn.Module, given: Input, device: torch.device) -> tuple[Tensor, ...]:
    """The inputs of one pass. Raises UsageError unless ``given`` is tensors or a shape of at least two dimensions."""
    parts = (given,) if isinstance(given, Tensor) else given
    tensors = [t for t in parts if isinstance(t, Tensor)]
    if tensors:
        return tuple(t.to(device) for t in tensors)
    sizes = [v for v in parts if isinstance(v, int) and v >= 1]
    if len(sizes) < max(2, len(parts)):
        what = "input_shape must be the shape of a batch, as in (128, 3, 32, 32)"
        raise UsageError(who, what, got=given)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return (torch.zeros(sizes, dtype=dtype, device=device),)


def workloads(who: str, model: nn.Module, layers: Layers, block: Block, example: tuple[Tensor, ...]) -> list[Workload]:
    """Runs one pass in eval mode, and records the inputs of every layer. The model does not change."""
    works: dict[nn.Module, list[Work]] = {m: [] for m in layers.modules.values()}

    def look(m: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        works[m].append(_work(m, inputs[0]))

    handles = [m.register_forward_hook(look) for m in works]
    try:
        with eval_mode(model):
            model(*example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in example)
        what = f"the model does not run on an input of shape {shapes}: {error}"
        remedy = "give the shape of a batch; or a batch, if the inputs have other dtypes"
        raise UsageError(who, what, remedy=remedy) from error
    finally:
        for handle in handles:
            handle.remove()
    # three digits: layers of equal shapes whose densities differ by one block are measured once
    densities = {name: float(f"{density:.3g}") for name, density in layers.densities.items()}
    return [
        Workload(name, _shape(m), tuple(works[m]), m.block if isinstance(m, SparseLayer) else block, densities[name])
        for name, m in layers.modules.items()
    ]


def _work(m: nn.Module, x: Tensor) -> Work:
    """One use of a layer."""
    weight, bias = _parameters(m)
    geometry = m.geometry if isinstance(m, SparseLayer) else module_geometry(m) if isinstance(m, nn.Conv2d) else None
    gradients = (x.requires_grad, weight.requires_grad)
    return Work(_shape(m), geometry, tuple(x.shape), bias is not None, *gradients, weight.dtype, weight.device)


def _parameters(m: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(weight or values, bias)."""
    if isinstance(m, SparseLayer):
        return m.values, m.bias
    assert isinstance(m, nn.Linear | nn.Conv2d)
    return m.weight, m.bias


def _shape(m: nn.Module) -> Shape:
    return tuple(m.dense_shape if isinstance(m, SparseLayer) else _parameters(m)[0].shape)
