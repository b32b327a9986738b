"""Changes of a layer's support that damage values, state or storage."""

import copy
from collections.abc import Callable

import torch

from gossamer import laws
from gossamer.support import Support
from gossamer.surgery import set_support_


def _surgery(after: Callable | None = None, layout: str = "csr", **options: Callable) -> Callable[[], None]:
    """The real surgery, and then something done to its result."""

    def mutant(layer, new, optimizer=None):
        before = copy.deepcopy((layer.values.detach(), dict(optimizer.state[layer.values]), layer.support))
        grad = layer.values.grad
        set_support_(layer, new, optimizer)
        with torch.no_grad():
            after(layer, new, optimizer, *before, grad)

    return lambda: laws.check_surgery(mutant, layout=layout, **options)


def _born(new: Support, old: Support) -> torch.Tensor:
    return old.find(new.ids()) < 0


def _state_not_zeroed(layer, new, optimizer, _values, _state, old, _grad):
    optimizer.state[layer.values]["momentum_buffer"][_born(new, old)] += 0.5


def _values_not_zeroed(layer, new, _optimizer, _values, _state, old, _grad):
    layer.values[_born(new, old)] = 1e-3


def _state_reset(layer, _new, optimizer, *_):
    optimizer.state[layer.values]["momentum_buffer"].zero_()


def _state_lost(layer, _new, optimizer, *_):
    optimizer.state[layer.values].clear()


def _by_position(layer, _new, _optimizer, values, _state, _old, _grad):
    n = min(layer.values.shape[0], values.shape[0])
    layer.values[:n] = values[:n]


def _gradient_kept(layer, _new, _optimizer, _values, _state, _old, grad):
    layer.values.grad = grad if grad is not None and grad.shape == layer.values.shape else None


def _storage_swapped(layer, *_):
    layer.values.data = layer.values.data.clone()


def _parameter_swapped(layer, *_):
    layer.values = torch.nn.Parameter(layer.values.detach().clone())


def _index_forgotten(layer, _new, _optimizer, _values, _state, old, _grad):
    layer.adopt_(old)


def _bias_zeroed(layer, *_):
    layer.bias.zero_()


def _left_in_the_zeros(layer, new, optimizer, *_):
    buffer = optimizer.state[layer.values]["momentum_buffer"]
    buffer[~new.mask()] = 1.0


def _index_overwritten(layer, new, optimizer=None):
    held = layer.support
    set_support_(layer, new, optimizer)
    if held.n == new.n:
        held.col.copy_(new.col), held.crow.copy_(new.crow)


SURGERY = {
    "born blocks inherit a momentum": _surgery(_state_not_zeroed),
    "born blocks inherit a value": _surgery(_values_not_zeroed),
    "momentum of all is reset": _surgery(_state_reset),
    "state is lost": _surgery(_state_lost),
    "values stay where they were in memory": _surgery(_by_position),
    "the old gradient stays": _surgery(_gradient_kept),
    "storage is swapped": _surgery(_storage_swapped),
    "the parameter is swapped": _surgery(_parameter_swapped),
    "the index is forgotten": _surgery(_index_forgotten),
    "the bias is reset": _surgery(_bias_zeroed),
    "dense momentum left where nothing is kept": _surgery(_left_in_the_zeros, layout="masked"),
    "the index is overwritten in place": lambda: laws.check_surgery(_index_overwritten),
}
