# pyright: strict
"""The law of a kind of layer: a module that is made of sparse layers, in every place where a user meets one."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..convert.densify import densify
from ..layers import sparse_layers
from ..layouts import gather
from ..ledger import Ledger
from ..topology import SET
from ..training.rewirer import Rewirer
from .details import close, demand, nesterov

STEPS, EVERY = 8, 2


def check_layer(make: Callable[[], nn.Module], x: Tensor) -> None:
    """A module with sparse layers inside computes, trains, rewires, counts and saves as the dense module does.

    Outputs, and the gradients of the input and of all parameters, are those of its copy under
    :func:`~gossamer.densify`, before and after training with :class:`~gossamer.SET`. Supports change and keep their
    size. The ledger counts its products. Its ``state_dict`` gives another module of the same kind the same outputs.

    Args:
        make: returns a new module, with sparse layers of two kept blocks or more and a density below 1; each call may
            draw others.
        x: an input, float32 or float64; it decides the tolerance.

    Raises: AssertionError.
    """
    module = make().to(x.dtype)
    layers = sparse_layers(module)
    demand(bool(layers), "the module must hold a sparse layer that sparse_layers(module) finds")
    demand(all(layer.support.n < layer.support.total for layer in layers.values()), "its layers must have zeros")
    _check_dense(module, x, "before training")
    ledger = Ledger(module, x[:1])
    ledger.step(x.shape[0])
    demand(0 < ledger.flops.forward < ledger.dense, "the ledger must count the products of its sparse layers")
    before = {name: layer.support for name, layer in layers.items()}
    grown = _train(module, x)
    sizes = {name: (s.n, layers[name].support.n) for name, s in before.items()}
    demand(all(a == b for a, b in sizes.values()), f"a topology of constant size must keep the sizes, not {sizes}")
    demand(all(grown.values()), f"a topology must exchange blocks of every layer, not {grown}")
    _check_dense(module, x, "after training")
    other = make().to(x.dtype)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    close(other.eval()(x), module.eval()(x), "its state_dict must hold all that decides the output", _tolerance(x))


def _tolerance(x: Tensor) -> float:
    return 1e-10 if x.dtype == torch.float64 else 1e-4


def _train(module: nn.Module, x: Tensor) -> dict[str, int]:
    """Some steps by a fixed target, with events. Returns the blocks that grew in each layer."""
    optimizer = nesterov(module.parameters())
    topology = SET(stop=STEPS, every=EVERY, drop_fraction=1.0)
    rewirer = Rewirer(module, optimizer, topology, rng=torch.Generator().manual_seed(0))
    module.train()
    grown = dict.fromkeys(rewirer.layers, 0)
    for _ in range(STEPS):
        y: Tensor = module(x)
        torch.autograd.backward((y - 1).square().mean())
        rewirer.step()
        optimizer.zero_grad()
        if rewirer.last is not None:
            grown = {name: n + rewirer.last.grown.get(name, 0) for name, n in grown.items()}
    rewirer.release()
    return grown


def _check_dense(module: nn.Module, x: Tensor, when: str) -> None:
    """Output and gradients are those of the dense copy, in eval mode."""
    sparse, dense = copy.deepcopy(module).eval(), densify(copy.deepcopy(module)).eval()
    inputs = [x.detach().clone().requires_grad_() for _ in range(2)]
    outputs: list[Tensor] = [m(one) for m, one in zip((sparse, dense), inputs, strict=True)]
    close(outputs[0], outputs[1], f"{when} the output must be that of the dense copy", _tolerance(x))
    weights = torch.linspace(-1, 1, outputs[0].numel(), dtype=x.dtype).view(outputs[0].shape)
    for y in outputs:
        demand(y.requires_grad, f"{when} the output must be differentiable")
        torch.autograd.backward((y * weights).sum())
    grads = [one.grad for one in inputs]
    demand(grads[0] is not None, f"{when} the input must get a gradient")
    assert grads[0] is not None and grads[1] is not None
    close(grads[0], grads[1], f"{when} the input's gradient must be that of the dense copy", _tolerance(x))
    for name, layer in sparse_layers(sparse).items():
        values, weight = layer.values.grad, dense.get_submodule(name).get_parameter("weight").grad
        demand(values is not None and weight is not None, f"{when} the values of {name!r} must get a gradient")
        assert values is not None and weight is not None
        s = layer.support
        held = layer.layout.compact(values, s)
        close(held, gather(weight, s), f"{when} the gradient of {name!r} must be that of the dense copy", _tolerance(x))
        if layer.bias is not None:
            mine, theirs = layer.bias.grad, dense.get_submodule(name).get_parameter("bias").grad
            demand(mine is not None and theirs is not None, f"{when} the bias of {name!r} must get a gradient")
            assert mine is not None and theirs is not None
            close(mine, theirs, f"{when} the bias's gradient of {name!r} must be that of the dense copy", _tolerance(x))
