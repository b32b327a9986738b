"""Estimators in scikit-learn's conventions: pipelines, grid search, ``clone``, pickling, data frames. They need scikit-learn.

    SparseLinearRecovery    y = X w + c with exactly counted non-zeros in w: any solver of this package behind ``coef_``
    SparseReLURegressor     a sparse two-layer ReLU network: ``fit_scalar`` (one target) or ``fit_vector`` (several)
    SparseReLUClassifier    the same with cross-entropy, two classes or more: ``fit_vector``

Inputs are standardised inside, since a threshold compares coefficients across features, and the scaling is folded back into the weights:
``network_`` and ``coef_`` act on inputs as they come. Errors are ValueErrors, as in scikit-learn.
"""

import math
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from .._errors import is_real, nearest
from ..support import Support
from .aiht import aiht
from .cosamp import cosamp
from .htp import htp
from .iht import iht
from .networks import Layer, ReLUNetwork
from .niht import niht
from .omp import omp
from .scalar import fit_scalar
from .vector import fit_vector

SOLVERS: dict[str, Callable[..., Any]] = {
    "omp": omp,
    "iht": iht,
    "niht": niht,
    "htp": htp,
    "cosamp": cosamp,
    "aiht": aiht,
}
FLOOR = 50  # non-zeros that a network gets by default at least, if it has as many


class SparseLinearRecovery(RegressorMixin, BaseEstimator):
    """Linear regression with at most ``n_nonzero`` non-zero coefficients, by the solvers of compressed sensing.

    Args:
        n_nonzero: non-zero coefficients; None is a tenth of the features, one at least.
        solver: ``"niht"``, ``"htp"``, ``"cosamp"``, ``"aiht"``, ``"iht"`` or ``"omp"``.
        fit_intercept: with a constant that is not counted.
        inflate: support while iterating over that of the result (``s_tilde / s``); not for ``"omp"``.
        max_iter: iterations at most; ``"omp"`` needs ``n_nonzero``.
        tol: residual over the norm of y at which it stops; None is the solver's own.
        verbose: 1 shows progress.

    After ``fit``: ``coef_`` (features,), ``intercept_``, ``support_`` (indices of the non-zeros), ``n_iter_``, ``converged_``, ``reason_``.
    """

    def __init__(
        self, n_nonzero=None, solver="niht", fit_intercept=True, inflate=1.0, max_iter=1000, tol=None, verbose=0
    ):
        self.n_nonzero = n_nonzero
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.inflate = inflate
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose

    def fit(self, X, y):
        """X (samples, features), y (samples,)."""
        X, y = _data(self, X, y, y_numeric=True)
        if self.solver not in SOLVERS:
            raise ValueError(
                f"unknown solver {self.solver!r}{nearest(self.solver, SOLVERS)}; one of {', '.join(SOLVERS)}"
            )
        features = X.shape[1]
        s = _count(self.n_nonzero, max(1, features // 10), features, f"{features} features")
        max_iter = _whole("max_iter", self.max_iter)
        _inflation(self.inflate)
        centre, mean = (X.mean(0), y.mean()) if self.fit_intercept else (np.zeros(features), 0.0)
        A, b = X - centre, y - mean
        norms = math.sqrt(len(X)) * _rms(A)
        norms[norms <= 1e-12 * np.maximum(np.abs(X).max(0), 1e-300) * math.sqrt(len(X))] = (
            np.inf
        )  # a constant feature is never chosen
        settings: dict[str, Any] = (
            {} if self.solver == "omp" else {"s_tilde": min(features, round(self.inflate * s)), "steps": max_iter}
        )
        with _Progress(self, s if self.solver == "omp" else max_iter, "residual") as told:
            found = SOLVERS[self.solver](
                _tensor(A / norms), _tensor(b), s, tolerance=self.tol, on_step=told, **settings
            )
        if not found.converged:
            warnings.warn(f"SparseLinearRecovery: {found.reason}", ConvergenceWarning, stacklevel=2)
        self.coef_ = found.dense().numpy() / norms
        self.intercept_ = float(mean - centre @ self.coef_)
        self.support_ = found.support.numpy()
        self.n_iter_ = max(1, found.iterations)
        self.converged_, self.reason_ = found.converged, found.reason
        return self

    def predict(self, X):
        """(samples, features) -> (samples,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_ + self.intercept_


class SparseReLURegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Regression by a sparse two-layer ReLU network, trained by IHT on the convex reformulation (arXiv 2509.20323).

    Args:
        n_nonzero: non-zero weights of the network; None is a tenth of the first layer's, 50 at least. With one target, weights fused across
            the two layers are counted, hidden biases among them; with several, the weights of both layers, biases not.
        n_neurons: hidden neurons that may be used.
        max_iter: rounds (one target), or passes over the data (several, Adam steps in each).
        inflate: the support begins that many times as large.
        batch_size: samples per step; None is all (one target), 128 (several).
        learning_rate: with several targets.
        tol: stops at this mean squared error over the variance of y; one target only.
        random_state: seed, or a NumPy generator: of gates, batches, initial weights.
        verbose: 1 shows progress.

    After ``fit``: ``network_`` (a :class:`gossamer.recover.ReLUNetwork` in torch, float64, on raw inputs), ``loss_curve_``, ``n_iter_``,
    ``n_nonzero_``. ``to_torch()`` gives the network as modules.
    """

    def __init__(
        self,
        n_nonzero=None,
        n_neurons=32,
        max_iter=60,
        inflate=4.0,
        batch_size=None,
        learning_rate=0.02,
        tol=1e-12,
        random_state=None,
        verbose=0,
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

    def fit(self, X, y):
        """X (samples, features), y (samples,) or (samples, targets)."""
        X, y = _data(self, X, y, y_numeric=True, multi_output=True)
        y = y.astype(np.float64)
        Y = y if y.ndim == 2 else y[:, None]
        several = Y.shape[1] > 1
        neurons, max_iter = _whole("n_neurons", self.n_neurons), _whole("max_iter", self.max_iter)
        batch = None if self.batch_size is None else _whole("batch_size", self.batch_size)
        _inflation(self.inflate)
        coefficients = neurons * (X.shape[1] + (Y.shape[1] if several else 1))
        described = f"{neurons} neurons on {X.shape[1]} features"
        s = _count(self.n_nonzero, max(FLOOR, coefficients // 10), coefficients, described, two_layers=several)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        centre, scale = _scaling(X)
        mean, spread = _scaling(Y)
        Z, T = _tensor((X - centre) / scale), _tensor((Y - mean) / spread)
        if several:
            batch = 128 if batch is None else batch
            steps = max_iter * -(-len(X) // batch)
            with _Progress(self, steps) as told:
                fit = fit_vector(
                    Z, T, s, neurons=neurons, steps=steps, batch=batch, lr=self.learning_rate, inflate=self.inflate,
                    bias=True, seed=seed, on_step=told,
                )  # fmt: skip
            network, self.n_iter_ = _folded(fit.network, centre, scale), max_iter
        else:
            Z = torch.cat([Z, torch.ones(len(Z), 1, dtype=Z.dtype)], 1)  # hidden biases
            with _Progress(self, max_iter) as told:
                fit = fit_scalar(
                    Z, T[:, 0], s, neurons=neurons, rounds=max_iter, inflate=self.inflate, batch=batch, tolerance=self.tol, seed=seed,
                    on_round=told,
                )  # fmt: skip
            network, self.n_iter_ = _folded(_with_bias(fit.network), centre, scale), len(fit.losses)
        self.n_nonzero_ = fit.network.nonzeros
        last = network.layers[-1]
        rows = last.support.rows().long()
        scaled = Layer(
            last.support, last.values * _tensor(spread)[rows], _biased(last) * _tensor(spread) + _tensor(mean)
        )
        self.network_ = ReLUNetwork((*network.layers[:-1], scaled), network.fused)
        self.loss_curve_ = fit.losses
        self.n_outputs_, self._column = Y.shape[1], y.ndim == 2
        return self

    def predict(self, X):
        """(samples, features) -> (samples,) or (samples, targets)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        y = self.network_.predict(_tensor(X)).numpy()
        return y if self._column else y[:, 0]

    def to_torch(self) -> nn.Sequential:
        """SparseLinear, ReLU, SparseLinear in float64, with identical predictions."""
        check_is_fitted(self)
        return self.network_.to_sequential()


class SparseReLUClassifier(ClassifierMixin, BaseEstimator):
    """Classification by a sparse two-layer ReLU network with cross-entropy, trained by IHT on both layers together.

    Args:
        n_nonzero: non-zero weights of both layers, biases not counted; None is a tenth of all, 50 at least.
        n_neurons: hidden neurons that may be used.
        max_iter: Adam steps between and after the thresholds.
        inflate: the support begins that many times as large.
        batch_size: samples per step.
        learning_rate: Adam's, cosine-annealed.
        alpha: decoupled weight decay.
        random_state: seed, or a NumPy generator: of gates, batches, initial weights.
        verbose: 1 shows progress.

    After ``fit``: ``classes_``, ``network_`` (float64, on raw inputs; one output per class), ``loss_curve_``, ``n_iter_``, ``n_nonzero_``.
    """

    def __init__(
        self,
        n_nonzero=None,
        n_neurons=32,
        max_iter=500,
        inflate=4.0,
        batch_size=128,
        learning_rate=0.02,
        alpha=0.0,
        random_state=None,
        verbose=0,
    ):
        self.n_nonzero = n_nonzero
        self.n_neurons = n_neurons
        self.max_iter = max_iter
        self.inflate = inflate
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y):
        """X (samples, features), y (samples,) labels of any kind."""
        X, y = _data(self, X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"SparseReLUClassifier needs samples of two classes at least; y holds one class only: {self.classes_[0]!r}"
            )
        neurons, max_iter = _whole("n_neurons", self.n_neurons), _whole("max_iter", self.max_iter)
        batch = _whole("batch_size", self.batch_size)
        _inflation(self.inflate)
        weights = neurons * (X.shape[1] + len(self.classes_))
        described = f"{neurons} neurons on {X.shape[1]} features and {len(self.classes_)} classes"
        s = _count(self.n_nonzero, max(FLOOR, weights // 10), weights, described, two_layers=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        centre, scale = _scaling(X)
        with _Progress(self, max_iter) as told:
            fit = fit_vector(
                _tensor((X - centre) / scale), torch.from_numpy(labels.astype(np.int64)), s, neurons=neurons, loss="cross_entropy",
                steps=max_iter, batch=batch, lr=self.learning_rate, inflate=self.inflate, weight_decay=self.alpha, bias=True,
                seed=seed, on_step=told,
            )  # fmt: skip
        self.network_ = _folded(fit.network, centre, scale)
        self.loss_curve_, self.n_iter_, self.n_nonzero_ = fit.losses, max_iter, fit.network.nonzeros
        return self

    def _logits(self, X) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.network_.predict(_tensor(X))

    def decision_function(self, X):
        """Scores: (samples,) for two classes, (samples, classes) for more."""
        scores = self._logits(X).numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X):
        """(samples, classes), rows add up to one."""
        return self._logits(X).softmax(1).numpy()

    def predict(self, X):
        """(samples,) of ``classes_``."""
        best = self._logits(X).argmax(1).numpy()
        return self.classes_[best]

    def to_torch(self) -> nn.Sequential:
        """SparseLinear, ReLU, SparseLinear in float64; its outputs are the logits."""
        check_is_fitted(self)
        return self.network_.to_sequential()


# -------------------------------------------------------------------- details


class _Progress:
    """Tells how far a fit has come: nothing, a bar on a terminal with rich, ten lines and the last step elsewhere."""

    def __init__(self, estimator: Any, total: int, what: str = "loss"):
        self.name, self.total, self.what, self.verbose, self.bar = (
            type(estimator).__name__,
            total,
            what,
            estimator.verbose,
            None,
        )
        self.last, self.untold = 0, ""

    def __enter__(self) -> "_Progress":
        if self.verbose and sys.stdout.isatty() and find_spec("rich") is not None:
            from rich.progress import Progress

            self.bar = Progress()
            self.task = self.bar.add_task(self.name, total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.verbose and self.untold:
            print(self.untold, flush=True)

    def __call__(self, t: int, value: float) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=t, description=f"{self.name} {self.what} {value:.4g}")
        elif self.verbose:
            self.untold = f"{self.name}: {t}/{self.total}  {self.what} {value:.4g}"
            if t * 10 // self.total > self.last:
                self.last = t * 10 // self.total
                print(self.untold, flush=True)
                self.untold = ""


def _data(estimator: Any, X: Any, y: Any, **how: bool) -> tuple[Any, Any]:
    """What every fit accepts: two samples at least, finite numbers, in double precision."""
    checked: Any = validate_data(estimator, X, y, dtype=np.float64, ensure_min_samples=2, **how)
    return checked


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64, copy=True))


def _largest(A: Any) -> Any:
    """max |a| of each column, or of a vector; 1 where that is zero."""
    top = np.abs(A).max(0)
    return np.where(top > 0, top, 1.0)


def _rms(A: Any) -> Any:
    """Root mean square of each column; no square overflows or vanishes."""
    top = _largest(A)
    return top * np.sqrt(((A / top) ** 2).mean(0))


def _scaling(X: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each column; 1 where a column is constant."""
    centre = X.mean(0)
    scale = _rms(X - centre)
    return centre, np.where(scale > 1e-12 * np.maximum(np.abs(centre), 1e-300), np.where(scale > 0, scale, 1.0), 1.0)


def _count(asked: Any, default: int, most: int, described: str, two_layers: bool = False) -> int:
    if asked is None:
        return min(default, most)
    if not is_real(asked) or asked % 1 or asked < 1:
        raise ValueError(f"n_nonzero must be a whole number of at least 1, or None; got {asked!r}")
    if two_layers and asked < 2:
        raise ValueError(f"n_nonzero={asked} is too few: the two layers need one weight each, 2 at least")
    if asked > most:
        raise ValueError(
            f"n_nonzero={asked} asks for more non-zeros than there are coefficients: {described} have {most}"
        )
    return int(asked)


def _whole(name: str, value: Any) -> int:
    if not is_real(value) or value % 1 or not value >= 1:
        raise ValueError(f"{name} must be at least 1, a whole number; got {value!r}")
    return int(value)


def _inflation(value: Any) -> None:
    if not is_real(value) or not 1 <= value < math.inf:
        raise ValueError(f"inflate must be at least 1; got {value!r}")


def _biased(layer: Layer) -> Tensor:
    return layer.values.new_zeros(layer.support.shape[0]) if layer.bias is None else layer.bias


def _with_bias(network: ReLUNetwork) -> ReLUNetwork:
    """A network on inputs with a constant one at the end, as one on the inputs alone with hidden biases."""
    first, *rest = network.layers
    (p, d), rows, cols = first.support.shape, first.support.rows().long(), first.support.col.long()
    constant = cols == d - 1
    bias = first.values.new_zeros(p).index_add_(0, rows[constant], first.values[constant])
    ids = rows[~constant] * (d - 1) + cols[~constant]
    return ReLUNetwork((Layer(Support.from_ids(ids, (p, d - 1)), first.values[~constant], bias), *rest), network.fused)


def _folded(network: ReLUNetwork, centre: Any, scale: Any) -> ReLUNetwork:
    """A network on (x - centre) / scale as one on x."""
    first, *rest = network.layers
    values = first.values / _tensor(scale)[first.support.col.long()]
    moved = values * _tensor(centre)[first.support.col.long()]
    bias = _biased(first).index_add(0, first.support.rows().long(), -moved)
    return ReLUNetwork((Layer(first.support, values, bias), *rest), network.fused)
