# pyright: strict, reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false, reportConstantRedefinition=false
"""Linear regression with few coefficients, in scikit-learn's conventions."""

import math
import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from ..._errors import nearest
from ..solvers.aiht import aiht
from ..solvers.cosamp import cosamp
from ..solvers.htp import htp
from ..solvers.iht import iht
from ..solvers.niht import niht
from ..solvers.omp import omp
from .data import Numbers, check_inflation, count, double, rms, validated, whole
from .progress import Progress

# different arguments: omp has no steps
SOLVERS: dict[str, Any] = {"omp": omp, "iht": iht, "niht": niht, "htp": htp, "cosamp": cosamp, "aiht": aiht}


class SparseLinearRecovery(RegressorMixin, BaseEstimator):
    """Linear regression with at most ``n_nonzero`` non-zero coefficients, by the solvers of compressed sensing.

    Args:
        n_nonzero: largest number of non-zero coefficients; None is a tenth of the features, at least one.
        solver: ``"niht"``, ``"htp"``, ``"cosamp"``, ``"aiht"``, ``"iht"`` or ``"omp"``.
        fit_intercept: fit a constant, which does not count as a coefficient.
        inflate: size of the support during the iteration over its final size (``s_tilde / s``); not for ``"omp"``.
        max_iter: largest number of iterations; ``"omp"`` makes ``n_nonzero``.
        tol: the iteration stops at this residual over the norm of y; None is the default of the solver.
        verbose: 1 shows the progress.

    Attributes:
        coef_: (features,).
        intercept_: the constant.
        support_: indices of the non-zeros.
        n_iter_: iterations.
        converged_: whether a stopping rule held, as in :class:`gossamer.recover.Recovery`.
        reason_: why the solver stopped.
    """

    def __init__(
        self,
        n_nonzero: int | None = None,
        solver: str = "niht",
        fit_intercept: bool = True,
        inflate: float = 1.0,
        max_iter: int = 1000,
        tol: float | None = None,
        verbose: int = 0,
    ):
        self.n_nonzero = n_nonzero
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.inflate = inflate
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "SparseLinearRecovery":
        """X (samples, features), y (samples,). Raises ValueError."""
        X, y = validated(self, X, y, y_numeric=True)
        if self.solver not in SOLVERS:
            guess = nearest(self.solver, SOLVERS)
            raise ValueError(f"unknown solver {self.solver!r}{guess}; one of {', '.join(SOLVERS)}")
        features = X.shape[1]
        s = count(self.n_nonzero, max(1, features // 10), features, f"{features} features")
        steps = whole("max_iter", self.max_iter)
        check_inflation(self.inflate)
        centre, mean = (X.mean(0), y.mean()) if self.fit_intercept else (np.zeros(features), 0.0)
        A = X - centre
        norms = math.sqrt(len(X)) * rms(A)
        # a constant feature is never chosen
        norms[norms <= 1e-12 * np.maximum(np.abs(X).max(0), 1e-300) * math.sqrt(len(X))] = np.inf
        settings: dict[str, Any] = {"s_tilde": min(features, round(self.inflate * s)), "steps": steps}
        if self.solver == "omp":
            settings, steps = {}, s
        with Progress(self, steps, "residual") as told:
            solve = SOLVERS[self.solver]
            found = solve(double(A / norms), double(y - mean), s, tolerance=self.tol, on_step=told, **settings)
        if not found.converged:
            warnings.warn(f"SparseLinearRecovery: {found.reason}", ConvergenceWarning, stacklevel=2)
        self.coef_: Numbers = found.dense().numpy() / norms
        self.intercept_ = float(mean - centre @ self.coef_)
        self.support_ = found.support.numpy()
        self.n_iter_ = max(1, found.iterations)
        self.converged_, self.reason_ = found.converged, found.reason
        return self

    def predict(self, X: Any) -> Numbers:
        """(samples, features) -> (samples,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_ + self.intercept_
