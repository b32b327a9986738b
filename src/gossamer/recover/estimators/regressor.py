# pyright: strict, reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false, reportConstantRedefinition=false
"""Regression by sparse two-layer ReLU networks, in scikit-learn's conventions."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from ..networks import Fit, ReLUNetwork, fit_scalar, fit_vector
from .data import FLOOR, Numbers, check_inflation, count, double, scaling, validated, whole
from .folding import on_raw_inputs, on_raw_targets, with_bias
from .progress import Progress


class SparseReLURegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Regression by a sparse two-layer ReLU network, by IHT on the convex reformulation (arXiv 2509.20323).

    Args:
        n_nonzero: number of non-zero weights; None is a tenth of the weights of the first layer, at least 50. With one
            target it counts the fused weights of the two layers, and the hidden biases. With several targets it counts
            the weights of both layers, without biases.
        n_neurons: largest number of hidden neurons.
        max_iter: rounds with one target; passes of Adam over the data with several.
        inflate: initial size of the support over its final size.
        batch_size: samples per step; None is all with one target, 128 with several.
        learning_rate: step size of Adam; several targets only.
        tol: the fit stops at this mean squared error over the variance of y; one target only.
        random_state: seed or NumPy generator of gates, batches and initial weights.
        verbose: 1 shows the progress.

    Attributes:
        network_: a :class:`gossamer.recover.ReLUNetwork`, float64, on the given inputs.
        loss_curve_: losses on standardised targets.
        n_iter_: rounds or passes.
        n_nonzero_: non-zero weights.
    """

    def __init__(
        self,
        n_nonzero: int | None = None,
        n_neurons: int = 32,
        max_iter: int = 60,
        inflate: float = 4.0,
        batch_size: int | None = None,
        learning_rate: float = 0.02,
        tol: float = 1e-12,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_nonzero = n_nonzero
        self.n_neurons = n_neurons
        self.max_iter = max_iter
        self.inflate = inflate
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "SparseReLURegressor":
        """X (samples, features), y (samples,) or (samples, targets). Raises ValueError."""
        X, y = validated(self, X, y, y_numeric=True, multi_output=True)
        y = y.astype(np.float64)
        Y = y if y.ndim == 2 else y[:, None]
        several = Y.shape[1] > 1
        neurons = whole("n_neurons", self.n_neurons)
        whole("max_iter", self.max_iter)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size)
        check_inflation(self.inflate)
        coefficients = neurons * (X.shape[1] + (Y.shape[1] if several else 1))
        described = f"{neurons} neurons on {X.shape[1]} features"
        s = count(self.n_nonzero, max(FLOOR, coefficients // 10), coefficients, described, two_layers=several)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        centre, scale = scaling(X)
        mean, spread = scaling(Y)
        fit_ = self._fit_several if several else self._fit_one
        fit, network = fit_((X - centre) / scale, (Y - mean) / spread, s, neurons, seed)
        self.network_ = on_raw_targets(on_raw_inputs(network, centre, scale), mean, spread)
        self.n_iter_ = int(self.max_iter) if several else len(fit.losses)
        self.n_nonzero_, self.loss_curve_ = fit.network.nonzeros, fit.losses
        self.n_outputs_, self._column = Y.shape[1], y.ndim == 2
        return self

    def _fit_several(self, Z: Numbers, T: Numbers, s: int, neurons: int, seed: int) -> tuple[Fit, ReLUNetwork]:
        batch = 128 if self.batch_size is None else int(self.batch_size)
        steps = int(self.max_iter) * -(-len(Z) // batch)
        with Progress(self, steps) as told:
            fit = fit_vector(
                double(Z), double(T), s, neurons=neurons, steps=steps, batch=batch, lr=self.learning_rate,
                inflate=self.inflate, bias=True, seed=seed, on_step=told,
            )  # fmt: skip
        return fit, fit.network

    def _fit_one(self, Z: Numbers, T: Numbers, s: int, neurons: int, seed: int) -> tuple[Fit, ReLUNetwork]:
        z = double(Z)
        z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)  # hidden biases
        batch, rounds = None if self.batch_size is None else int(self.batch_size), int(self.max_iter)
        with Progress(self, rounds) as told:
            fit = fit_scalar(
                z, double(T[:, 0]), s, neurons=neurons, rounds=rounds, inflate=self.inflate, batch=batch,
                tolerance=self.tol, seed=seed, on_round=told,
            )  # fmt: skip
        return fit, with_bias(fit.network)

    def predict(self, X: Any) -> Numbers:
        """(samples, features) -> (samples,) or (samples, targets)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        y = self.network_.predict(double(X)).numpy()
        return y if self._column else y[:, 0]

    def to_torch(self) -> nn.Sequential:
        """SparseLinear, ReLU, SparseLinear in float64, with identical predictions."""
        check_is_fitted(self)
        return self.network_.to_sequential()
