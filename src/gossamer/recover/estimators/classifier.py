# pyright: strict, reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false, reportConstantRedefinition=false
"""Classification by sparse two-layer ReLU networks, in scikit-learn's conventions."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ..networks import fit_vector
from .data import FLOOR, Numbers, check_inflation, count, double, scaling, validated, whole
from .folding import on_raw_inputs
from .progress import Progress


class SparseReLUClassifier(ClassifierMixin, BaseEstimator):
    """Classification by a sparse two-layer ReLU network with cross-entropy, by IHT on both layers together.

    Args:
        n_nonzero: number of non-zero weights of both layers, without biases; None is a tenth of all, at least 50.
        n_neurons: largest number of hidden neurons.
        max_iter: number of Adam steps.
        inflate: initial size of the support over its final size.
        batch_size: samples per step.
        learning_rate: step size of Adam, cosine-annealed.
        alpha: decoupled weight decay.
        random_state: seed or NumPy generator of gates, batches and initial weights.
        verbose: 1 shows the progress.

    Attributes:
        classes_: labels, in the order of the outputs.
        network_: a :class:`gossamer.recover.ReLUNetwork`, float64, on the given inputs; one output per class.
        loss_curve_: loss of each step.
        n_iter_: steps.
        n_nonzero_: non-zero weights.
    """

    def __init__(
        self,
        n_nonzero: int | None = None,
        n_neurons: int = 32,
        max_iter: int = 500,
        inflate: float = 4.0,
        batch_size: int = 128,
        learning_rate: float = 0.02,
        alpha: float = 0.0,
        random_state: Any = None,
        verbose: int = 0,
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

    def fit(self, X: Any, y: Any) -> "SparseReLUClassifier":
        """X (samples, features), y (samples,) labels of any kind. Raises ValueError."""
        X, y = validated(self, X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            what = "SparseReLUClassifier needs samples of at least two classes"
            raise ValueError(f"{what}; y holds one class only: {self.classes_[0]!r}")
        neurons, steps = whole("n_neurons", self.n_neurons), whole("max_iter", self.max_iter)
        batch = whole("batch_size", self.batch_size)
        check_inflation(self.inflate)
        weights = neurons * (X.shape[1] + len(self.classes_))
        described = f"{neurons} neurons on {X.shape[1]} features and {len(self.classes_)} classes"
        s = count(self.n_nonzero, max(FLOOR, weights // 10), weights, described, two_layers=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        centre, scale = scaling(X)
        with Progress(self, steps) as told:
            fit = fit_vector(
                double((X - centre) / scale), torch.from_numpy(labels.astype(np.int64)), s, neurons=neurons,
                loss="cross_entropy", steps=steps, batch=batch, lr=self.learning_rate, inflate=self.inflate,
                weight_decay=self.alpha, bias=True, seed=seed, on_step=told,
            )  # fmt: skip
        self.network_ = on_raw_inputs(fit.network, centre, scale)
        self.loss_curve_, self.n_iter_, self.n_nonzero_ = fit.losses, steps, fit.network.nonzeros
        return self

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.network_.predict(double(X))

    def decision_function(self, X: Any) -> Numbers:
        """Scores: (samples,) for two classes, (samples, classes) for more."""
        scores = self._logits(X).numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> Numbers:
        """(samples, classes); each row sums to one."""
        return self._logits(X).softmax(1).numpy()

    def predict(self, X: Any) -> Any:
        """(samples,) of ``classes_``."""
        best = self._logits(X).argmax(1).numpy()
        return self.classes_[best]

    def to_torch(self) -> nn.Sequential:
        """SparseLinear, ReLU, SparseLinear in float64; its outputs are the logits."""
        check_is_fitted(self)
        return self.network_.to_sequential()
