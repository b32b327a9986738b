"""What a sparse ReLU network is here: layers of (support, values, bias), and its way into ``nn.Sequential`` of ``SparseLinear`` and back.

    ReLUNetwork    f(x) = W_L (... W_2 (W_1 x + b_1)_+ ...) + b_L, every W sparse
    GatedNetwork   f(x) = sum_j 1[h_j x > 0] w_j x, the gates h fixed: the model that the recovery theorems are about, convex in w

A gated network whose gates agree with its own weights, 1[h_j x > 0] = 1[sigma_j w_j x > 0] for a sign sigma_j, is the ReLU network
sum_j sigma_j (sigma_j w_j x)_+ .
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from .._backend.dispatch import run
from .._errors import UsageError
from ..layers import SparseLinear
from ..products.linear.op import FORWARD, PRODUCT
from ..support import Support
from .arrays import tensor
from .operators import GatedReLU
from .recovery import Recovery
from .units import exponent, shifted


class Layer(NamedTuple):
    """One sparse matrix (out, in) with its bias (out,), if it has one."""

    support: Support
    values: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        return PRODUCT.forward(x, self.values, self.support, None, self.bias)


class ReLUNetwork(NamedTuple):
    """Sparse layers with a ReLU between each two.

    ``signs``: for scalar networks that were fitted as one vector of fused coefficients w_j = u_j v_j, the last layer holds v_j = +-1 and is
    not counted by ``nonzeros``.
    """

    layers: tuple[Layer, ...]
    fused: bool = False

    @property
    def nonzeros(self) -> int:
        """Non-zero weights; output weights of +-1 that only carry a sign are not counted, nor biases."""
        counted = self.layers[:-1] if self.fused else self.layers
        return sum(int(layer.values.count_nonzero()) for layer in counted)

    def predict(self, X: Any) -> Tensor:
        """(n, d) -> (n, k)."""
        X = tensor("ReLUNetwork.predict", "X", X)
        for layer in self.layers[:-1]:
            X = layer(X).clamp_min(0)
        return self.layers[-1](X)

    def to_sequential(self) -> nn.Sequential:
        """SparseLinear, ReLU, ..., SparseLinear, with copies of these weights: the same function, ready to train or to save."""
        modules: list[nn.Module] = []
        for support, values, bias in self.layers:
            rows, cols = support.shape
            if support.n == 0:  # a layer needs one weight at least: here one that is zero
                support, values = (
                    Support.from_ids(torch.zeros(1, dtype=torch.int64), support.shape),
                    values.new_zeros(1),
                )
            layer = SparseLinear(
                cols, rows, support=support, bias=bias is not None, dtype=values.dtype, device=values.device
            )
            layer.set_values_(values)
            if bias is not None and layer.bias is not None:
                with torch.no_grad():
                    layer.bias.copy_(bias)
            modules += [layer, nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    @staticmethod
    def from_sequential(model: nn.Sequential) -> "ReLUNetwork":
        """The network of alternating SparseLinear and ReLU modules. Raises UsageError for any other."""
        layers = []
        for i, module in enumerate(model):
            if i % 2 == 1 and isinstance(module, nn.ReLU):
                continue
            if i % 2 == 1 or not isinstance(module, SparseLinear) or module.block != (1, 1):
                remedy = "SparseLinear, ReLU, ..., SparseLinear; gs.sparsify makes them"
                raise UsageError(
                    "ReLUNetwork.from_sequential", f"module {i} does not fit", got=type(module).__name__, remedy=remedy
                )
            bias = None if module.bias is None else module.bias.detach().clone()
            layers.append(
                Layer(module.support, module.layout.compact(module.values.detach(), module.support).clone(), bias)
            )
        if len(model) % 2 == 0:
            raise UsageError("ReLUNetwork.from_sequential", "the last module must be a SparseLinear")
        return ReLUNetwork(tuple(layers))

    @staticmethod
    def scalar(ids: Tensor, w: Tensor, signs: Tensor, features: int) -> "ReLUNetwork":
        """sum_j sigma_j (sigma_j w_j x)_+ from fused coefficients at ids j d + i, and the signs (p,) of all neurons."""
        neurons = signs.numel()
        first = Layer(Support.from_ids(ids, (neurons, features)), w * signs[ids // features])
        used = torch.unique(ids // features)
        return ReLUNetwork((first, Layer(Support.from_ids(used, (1, neurons)), signs[used].to(w))), fused=True)


class GatedNetwork(NamedTuple):
    """A network with fixed gates: generators (p, d), or their number where ``seed`` draws them; coefficients found by a solver."""

    found: Recovery
    neurons: int
    features: int
    outputs: int
    generators: Tensor | None
    seed: int

    def operator(self, X: Any) -> GatedReLU:
        """The measurements that these gates make of other inputs."""
        return (
            GatedReLU.random(X, self.neurons, self.seed) if self.generators is None else GatedReLU(X, self.generators)
        )

    def predict(self, X: Any) -> Tensor:
        """(n, d) -> (n, k)."""
        A = self.operator(X)
        x = self.found.dense().view(-1, self.outputs)
        return torch.stack([A.matvec(column.contiguous()) for column in x.T], 1)

    def signs(self, X: Any) -> tuple[Tensor, Tensor]:
        """For each neuron in use the sign with which its own weights repeat its gates best on X, and the share of samples on which they
        do: neurons (k,), signed shares (k,) in [-1, 1]. Scalar output."""
        A = self.operator(X)
        used, z = products(A.X, self.found.support, self.found.values, self.features)
        gates = A.gates(used).T
        as_is = ((z > 0) == gates).double().mean(0)
        flipped = ((z < 0) == gates).double().mean(0)
        return used, torch.where(as_is >= flipped, as_is, -flipped)

    def to_relu(self, X: Any) -> ReLUNetwork:
        """The same function as a ReLU network, where it is one on the inputs X; raises UsageError where gates and weights disagree."""
        if self.outputs != 1:
            raise UsageError("GatedNetwork.to_relu", "only a scalar output can be converted", got=self.outputs)
        used, agree = self.signs(X)
        bad = [
            f"neuron {int(j)}: {100 * abs(float(a)):.1f} % of the samples"
            for j, a in zip(used, agree, strict=True)
            if abs(float(a)) < 1
        ]
        if bad:
            raise UsageError(
                "GatedNetwork.to_relu",
                f"the gates of {len(bad)} neurons are not those of their own weights, so no ReLU network of this size is the same function",
                reasons=bad[:5],
                remedy="fit_scalar, which lets the gates follow the weights",
            )
        signs = self.found.values.new_ones(self.neurons)
        signs[used] = agree.sign().to(signs)
        return ReLUNetwork.scalar(self.found.support, self.found.values, signs, self.features)


def products(X: Tensor, ids: Tensor, w: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """X w_j for every neuron j that has a coefficient: neurons (k,), products (n, k), by the sparse kernels."""
    used, at = torch.unique(ids // features, return_inverse=True)
    if not ids.numel():
        return used, X.new_zeros(X.shape[0], 0)
    s = Support.from_ids(at * features + ids % features, (used.numel(), features))
    return used, run(FORWARD, X, w, s)


def inputs(who: str, X: Any, Y: Any) -> tuple[Tensor, Tensor]:
    """Checked data: X (n, d) and Y (n, k). Raises UsageError."""
    X, Y = tensor(who, "X", X), tensor(who, "Y", Y)
    if Y.dim() > 2:
        raise UsageError(who, "targets must be (samples,) or (samples, outputs)", got=tuple(Y.shape))
    if X.dim() != 2 or X.dtype not in (torch.float32, torch.float64) or not X.numel():
        raise UsageError(who, "X must be (samples, features), float32 or float64", got=(tuple(X.shape), X.dtype))
    if len(Y) != len(X):
        raise UsageError(who, f"there are {len(X)} samples, but {len(Y)} targets")
    for name, t in (("X", X), ("Y", Y)):
        if t.is_floating_point() and not bool(t.isfinite().all()):
            raise UsageError(who, f"{name} holds NaN or infinite entries", remedy="drop or impute them")
    return X.detach(), (Y[:, None] if Y.dim() == 1 else Y).detach().to(X.dtype)


def classes_of(who: str, y: Tensor) -> int:
    """How many classes labels 0, 1, ... have. Raises UsageError."""
    if y.dim() != 1 or y.is_floating_point() or not len(y) or int(y.min()) < 0:
        raise UsageError(who, "labels must be whole numbers 0, 1, ..., one per sample", got=(tuple(y.shape), y.dtype))
    if int(y.min()) == int(y.max()):
        raise UsageError(who, "there is only one class", remedy="samples of two classes at least")
    return int(y.max()) + 1


def psnr(prediction: Any, target: Any) -> float:
    """Peak signal-to-noise ratio in dB: 20 log10 max |y| - 10 log10 of the mean squared error, whatever the unit of both."""
    a, y = tensor("psnr", "prediction", prediction).double(), tensor("psnr", "target", target).double()
    e = exponent(y)
    a, y = shifted(a, -e), shifted(y, -e)
    error = float((a - y).square().mean())
    return float(20 * y.abs().max().log10()) - 10 * math.log10(max(error, 1e-300))


def onehot(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """Labels (n,) as rows of zeros and a one, (n, classes)."""
    return one_hot(y, classes).to(like.dtype)


def layers_of(model: nn.Module) -> Sequence[SparseLinear]:
    """The sparse linear layers of a sequential model, in order."""
    return [m for m in model.modules() if isinstance(m, SparseLinear)]
