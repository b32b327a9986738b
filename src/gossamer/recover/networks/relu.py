# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Sparse ReLU networks: layers of (support, values, bias), and their conversion to ``nn.Sequential`` and back.

f(x) = W_L (... W_2 (W_1 x + b_1)_+ ...) + b_L      every W sparse
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._errors import UsageError
from ...layers import SparseLinear
from ...products.linear.op import PRODUCT
from ...products.sense.op import top_k
from ...support import Support
from ..arrays import Array, tensor, unique


class Layer(NamedTuple):
    """One sparse matrix (out, in), and its bias (out,) or None."""

    support: Support
    values: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        return PRODUCT.forward(x, self.values, self.support, None, self.bias)


class ReLUNetwork(NamedTuple):
    """Sparse layers with a ReLU after each but the last.

    Attributes:
        layers: the layers, from input to output.
        fused: whether the network is one vector of fused coefficients w_j = u_j v_j. The last layer then holds
            v_j = +-1, and ``nonzeros`` does not count it.
    """

    layers: tuple[Layer, ...]
    fused: bool = False

    @property
    def nonzeros(self) -> int:
        """Number of non-zero weights, without biases and without the output weights +-1 of a fused network."""
        counted = self.layers[:-1] if self.fused else self.layers
        return sum(int(layer.values.count_nonzero()) for layer in counted)

    def predict(self, X: Array) -> Tensor:
        """(n, d) -> (n, k)."""
        x = tensor("ReLUNetwork.predict", "X", X)
        for layer in self.layers[:-1]:
            x = layer(x).clamp_min(0)
        return self.layers[-1](x)

    def to_sequential(self) -> nn.Sequential:
        """The same function as modules SparseLinear, ReLU, ..., SparseLinear, with copies of these weights."""
        modules: list[nn.Module] = []
        for support, values, bias in self.layers:
            rows, cols = support.shape
            if support.n == 0:  # a SparseLinear needs at least one weight: here it is zero
                support = Support.from_ids(torch.zeros(1, dtype=torch.int64), support.shape)
                values = values.new_zeros(1)
            biased, dtype, device = bias is not None, values.dtype, values.device
            layer = SparseLinear(cols, rows, support=support, bias=biased, dtype=dtype, device=device)
            layer.set_values_(values)
            if bias is not None and layer.bias is not None:
                with torch.no_grad():
                    layer.bias.copy_(bias)
            modules += [layer, nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    @staticmethod
    def from_sequential(model: nn.Sequential) -> "ReLUNetwork":
        """The network of alternating SparseLinear and ReLU modules. Raises UsageError for any other model."""
        layers: list[Layer] = []
        for i, module in enumerate(model):
            if i % 2 == 1 and isinstance(module, nn.ReLU):
                continue
            if i % 2 == 1 or not isinstance(module, SparseLinear) or module.block != (1, 1):
                remedy = "SparseLinear, ReLU, ..., SparseLinear; gs.sparsify makes them"
                got = type(module).__name__
                raise UsageError("ReLUNetwork.from_sequential", f"module {i} does not fit", got=got, remedy=remedy)
            bias = None if module.bias is None else module.bias.detach().clone()
            values = module.layout.compact(module.values.detach(), module.support).clone()
            layers.append(Layer(module.support, values, bias))
        if len(model) % 2 == 0:
            raise UsageError("ReLUNetwork.from_sequential", "the last module must be a SparseLinear")
        return ReLUNetwork(tuple(layers))

    @staticmethod
    def scalar(ids: Tensor, w: Tensor, signs: Tensor, features: int) -> "ReLUNetwork":
        """sum_j sigma_j (sigma_j w_j x)_+ from fused coefficients w at ids j d + i and all signs (p,)."""
        neurons = signs.numel()
        first = Layer(Support.from_ids(ids, (neurons, features)), w * signs[ids // features])
        used = unique(ids // features)[0]
        return ReLUNetwork((first, Layer(Support.from_ids(used, (1, neurons)), signs[used].to(w))), fused=True)


class Fit(NamedTuple):
    """A fitted network.

    Attributes:
        network: the network.
        losses: the mean squared error, or the chosen loss, of every round or step. If the network is that of the best
            round, its loss is the smallest.
        converged: whether the fit reached its tolerance.
        reason: why the fit ended, one sentence.
    """

    network: ReLUNetwork
    losses: list[float]
    converged: bool
    reason: str


def largest(layer: Layer, n: int) -> Layer:
    """The layer with only its n largest weights."""
    keep = top_k(layer.values.abs(), n)
    return Layer(Support.from_ids(layer.support.ids()[keep], layer.support.shape), layer.values[keep], layer.bias)
