# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Networks with fixed gates: the model of the recovery theorems.   arXiv 2509.20323

    f(x) = sum_j 1[h_j x > 0] w_j x      the gates h_j fixed; convex in w
    y = A w,  A = [D_1 X ... D_p X],  D_j = diag 1[X h_j > 0]      solved by any solver

A gated network whose gates agree with its own weights, 1[h_j x > 0] = 1[sigma_j w_j x > 0] for a sign sigma_j, is the
ReLU network sum_j sigma_j (sigma_j w_j x)_+ .
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._backend.dispatch import run
from ..._errors import UsageError
from ...products.linear.op import FORWARD
from ...support import Support
from ..arrays import Array, tensor, unique
from ..operators import GatedReLU, Stacked
from ..solvers.niht import niht
from ..solvers.result import Recovery
from .data import inputs
from .relu import ReLUNetwork


class GatedNetwork(NamedTuple):
    """A network with fixed gates.

    Attributes:
        found: the coefficients, as the result of a solver.
        neurons: number of neurons p.
        features: number of inputs d.
        outputs: number of outputs k.
        generators: h (p, d); None if they are drawn from ``seed``.
        seed: seed of the generators.
    """

    found: Recovery
    neurons: int
    features: int
    outputs: int
    generators: Tensor | None
    seed: int

    def operator(self, X: Array) -> GatedReLU:
        """The operator of these gates on the inputs X."""
        if self.generators is None:
            return GatedReLU.random(X, self.neurons, self.seed)
        return GatedReLU(X, self.generators)

    def predict(self, X: Array) -> Tensor:
        """(n, d) -> (n, k)."""
        A = self.operator(X)
        x = self.found.dense().view(-1, self.outputs)
        return torch.stack([A.matvec(column.contiguous()) for column in x.T], 1)

    def signs(self, X: Array) -> tuple[Tensor, Tensor]:
        """For each neuron with weights, the sign with which these agree best with its gates on X. One output only.

        Returns: neurons (k,); signed fractions (k,) in [-1, 1]: the sign times the fraction of samples that agree.
        """
        A = self.operator(X)
        used, z = products(A.X, self.found.support, self.found.values, self.features)
        gates = A.gates(used).T
        as_is = ((z > 0) == gates).double().mean(0)
        flipped = ((z < 0) == gates).double().mean(0)
        return used, torch.where(as_is >= flipped, as_is, -flipped)

    def to_relu(self, X: Array) -> ReLUNetwork:
        """The same function as a ReLU network. Raises UsageError if gates and weights disagree on the inputs X."""
        if self.outputs != 1:
            raise UsageError("GatedNetwork.to_relu", "only a scalar output can be converted", got=self.outputs)
        used, agree = self.signs(X)
        bad = [
            f"neuron {int(j)}: {100 * abs(float(a)):.1f} % of the samples"
            for j, a in zip(used, agree, strict=True)
            if abs(float(a)) < 1
        ]
        if bad:
            what = f"the gates of {len(bad)} neurons do not agree with their weights"
            what = f"{what}, so no ReLU network of this size is the same function"
            remedy = "use fit_scalar, in which the gates follow the weights"
            raise UsageError("GatedNetwork.to_relu", what, reasons=bad[:5], remedy=remedy)
        signs = self.found.values.new_ones(self.neurons)
        signs[used] = agree.sign().to(signs)
        return ReLUNetwork.scalar(self.found.support, self.found.values, signs, self.features)


def fit_gated(
    X: Array,
    Y: Array,
    s: int,
    *,
    generators: Array | None = None,
    neurons: int = 64,
    seed: int = 0,
    solver: Callable[..., Recovery] = niht,
    **settings: Any,  # those of the solver
) -> GatedNetwork:
    """Finds the s-sparse coefficients of a network with fixed gates. All outputs share the gates and the s non-zeros.

    Args:
        X: inputs (n, d), float32 or float64.
        Y: targets (n,) or (n, k).
        s: largest number of non-zeros of all outputs together.
        generators: h (p, d); None draws ``neurons`` of them from ``seed``.
        neurons: number of drawn generators.
        seed: seed of drawn generators.
        solver: ``niht``, ``htp``, ``aiht``, ``cosamp``, ``iht`` or ``omp``. It gets ``settings``.

    Raises: UsageError as the solver.
    """
    x, y = inputs("fit_gated", X, Y)
    if not callable(solver):
        raise UsageError("fit_gated", "solver must be a function, as recover.niht", got=solver)
    h = None if generators is None else tensor("fit_gated", "generators", generators)
    gates = GatedReLU.random(x, neurons, seed) if h is None else GatedReLU(x, h)
    A = gates if y.shape[1] == 1 else Stacked(gates, y.shape[1])
    found = solver(A, y.flatten(), s, **settings)
    return GatedNetwork(found, gates.neurons, gates.features, y.shape[1], h, seed)


def products(X: Tensor, ids: Tensor, w: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """X w_j for every neuron j that has a coefficient: neurons (k,), products (n, k), by the sparse kernels."""
    used, at = unique(ids // features)
    if not ids.numel():
        return used, X.new_zeros(X.shape[0], 0)
    s = Support.from_ids(at * features + ids % features, (used.numel(), features))
    return used, run(FORWARD, X, w, s)
