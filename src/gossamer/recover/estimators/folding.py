# pyright: strict, reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""Scaling of inputs and targets, folded into the weights of a network."""

from torch import Tensor

from ...support import Support
from ..networks import Layer, ReLUNetwork
from .data import Numbers, double


def with_bias(network: ReLUNetwork) -> ReLUNetwork:
    """Turns the weights of a constant last input 1 into hidden biases, and removes that input."""
    first, *rest = network.layers
    (p, d), rows, cols = first.support.shape, first.support.rows().long(), first.support.col.long()
    constant = cols == d - 1
    bias = first.values.new_zeros(p).index_add_(0, rows[constant], first.values[constant])
    ids = rows[~constant] * (d - 1) + cols[~constant]
    hidden = Layer(Support.from_ids(ids, (p, d - 1)), first.values[~constant], bias)
    return ReLUNetwork((hidden, *rest), network.fused)


def on_raw_inputs(network: ReLUNetwork, centre: Numbers, scale: Numbers) -> ReLUNetwork:
    """Turns a network on (x - centre) / scale into an equal network on x."""
    first, *rest = network.layers
    values = first.values / double(scale)[first.support.col.long()]
    moved = values * double(centre)[first.support.col.long()]
    bias = _biased(first).index_add(0, first.support.rows().long(), -moved)
    return ReLUNetwork((Layer(first.support, values, bias), *rest), network.fused)


def on_raw_targets(network: ReLUNetwork, mean: Numbers, spread: Numbers) -> ReLUNetwork:
    """Turns a network for (y - mean) / spread into an equal network for y."""
    last, scale = network.layers[-1], double(spread)
    values = last.values * scale[last.support.rows().long()]
    scaled = Layer(last.support, values, _biased(last) * scale + double(mean))
    return ReLUNetwork((*network.layers[:-1], scaled), network.fused)


def _biased(layer: Layer) -> Tensor:
    return layer.values.new_zeros(layer.support.shape[0]) if layer.bias is None else layer.bias
