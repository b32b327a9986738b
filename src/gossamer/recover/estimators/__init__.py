"""Estimators in scikit-learn's conventions: pipelines, grid search, ``clone``, pickling, data frames.

    SparseLinearRecovery    y = X w + c with a given number of non-zeros in w: any greedy solver behind ``coef_``
    SparseReLURegressor     a sparse two-layer ReLU network: ``fit_scalar`` (one target) or ``fit_vector`` (several)
    SparseReLUClassifier    the same with cross-entropy, for two or more classes: ``fit_vector``

They need scikit-learn. ``fit`` standardises the inputs, because a threshold compares coefficients across features. The
scaling is folded into the weights: ``network_`` and ``coef_`` act on the given inputs. Errors are ValueErrors, as in
scikit-learn. X and y are not typed: scikit-learn accepts and checks arrays, data frames and lists.
"""

from .classifier import SparseReLUClassifier
from .linear import SparseLinearRecovery
from .regressor import SparseReLURegressor

__all__ = ["SparseLinearRecovery", "SparseReLUClassifier", "SparseReLURegressor"]
