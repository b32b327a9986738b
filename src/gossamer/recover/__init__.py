"""Recovery: sparse vectors from few linear measurements, and sparse ReLU networks as such vectors.

from gossamer import recover
found = recover.niht(A, y, s=10)                         y = A x: solvers, one result type
fit = recover.fit_scalar(X, y, s=20, neurons=50)         sparse two-layer ReLU networks by IHT
recover.SparseReLUClassifier(n_nonzero=200).fit(X, y)    scikit-learn's conventions (needs scikit-learn)
recover.diagnose.coherence(A)                            quality of a measurement matrix

operators    sensing matrices, stored or computed on the fly
solvers      one file per algorithm, one loop for thresholded gradient steps
networks     sparse ReLU networks: fixed gates, one output, several outputs, several hidden layers
diagnose     quality of measurement matrices, and of the sensed gradients of sparse layers
estimators   scikit-learn's conventions; imported at the first use, because only they need scikit-learn
theory       closed forms
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .._errors import UsageError
from . import diagnose, theory
from .networks import Fit, GatedNetwork, ReLUNetwork, fit_deep, fit_gated, fit_scalar, fit_vector, psnr
from .operators import Dense, GatedReLU, Gaussian, Operator, Stacked, SubsampledDCT, operator, to_scipy
from .solvers.aiht import aiht
from .solvers.amp import amp
from .solvers.basis_pursuit import basis_pursuit
from .solvers.cosamp import cosamp
from .solvers.fista import fista, ista
from .solvers.htp import htp
from .solvers.iht import iht
from .solvers.niht import niht
from .solvers.omp import omp
from .solvers.result import Recovery
from .solvers.reweighted import reweighted_l1

if TYPE_CHECKING:
    from .estimators import SparseLinearRecovery as SparseLinearRecovery
    from .estimators import SparseReLUClassifier as SparseReLUClassifier
    from .estimators import SparseReLURegressor as SparseReLURegressor

ESTIMATORS = ("SparseLinearRecovery", "SparseReLUClassifier", "SparseReLURegressor")
GREEDY = {"omp": omp, "iht": iht, "niht": niht, "htp": htp, "cosamp": cosamp, "aiht": aiht}  # solve(A, y, s)
CONVEX = {"basis_pursuit": basis_pursuit, "reweighted_l1": reweighted_l1, "amp": amp}  # solve(A, y)
SOLVERS = {**GREEDY, **CONVEX, "fista": fista, "ista": ista}

__all__ = [  # without the estimators: `import *` must work without scikit-learn
    "CONVEX",
    "GREEDY",
    "SOLVERS",
    "Dense",
    "Fit",
    "GatedNetwork",
    "GatedReLU",
    "Gaussian",
    "Operator",
    "ReLUNetwork",
    "Recovery",
    "Stacked",
    "SubsampledDCT",
    "aiht",
    "amp",
    "basis_pursuit",
    "cosamp",
    "diagnose",
    "fista",
    "fit_deep",
    "fit_gated",
    "fit_scalar",
    "fit_vector",
    "htp",
    "iht",
    "ista",
    "niht",
    "omp",
    "operator",
    "psnr",
    "reweighted_l1",
    "theory",
    "to_scipy",
]


def __getattr__(name: str) -> Any:
    if name not in ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("sklearn") is None:
        what = "needs scikit-learn, which is not installed"
        raise UsageError(f"gossamer.recover.{name}", what, remedy='pip install "gossamer[recover]"')
    from . import estimators

    return getattr(estimators, name)
