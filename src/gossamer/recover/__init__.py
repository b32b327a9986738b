"""Recovery: sparse vectors from few linear measurements, and sparse ReLU networks as such vectors.

    from gossamer import recover
    found = recover.niht(A, y, s=10)                         y = A x: solvers, one result type
    fit = recover.fit_scalar(X, y, s=20, neurons=50)         sparse two-layer ReLU networks by IHT on the convex reformulation
    recover.SparseReLUClassifier(n_nonzero=200).fit(X, y)    scikit-learn's conventions (needs scikit-learn)
    recover.diagnose.coherence(A)                            how good are these measurements?

The estimators are imported when they are first asked for, so that everything else works without scikit-learn.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .._errors import UsageError
from . import diagnose as diagnose
from . import theory as theory
from .aiht import aiht as aiht
from .amp import amp as amp
from .basis_pursuit import basis_pursuit as basis_pursuit
from .cosamp import cosamp as cosamp
from .fista import fista as fista
from .fista import ista as ista
from .htp import htp as htp
from .iht import iht as iht
from .networks import GatedNetwork as GatedNetwork
from .networks import ReLUNetwork as ReLUNetwork
from .networks import psnr as psnr
from .niht import niht as niht
from .omp import omp as omp
from .operators import Dense as Dense
from .operators import GatedReLU as GatedReLU
from .operators import Gaussian as Gaussian
from .operators import Operator as Operator
from .operators import Stacked as Stacked
from .operators import SubsampledDCT as SubsampledDCT
from .operators import operator as operator
from .operators import to_scipy as to_scipy
from .recovery import Recovery as Recovery
from .reweighted import reweighted_l1 as reweighted_l1
from .scalar import Fit as Fit
from .scalar import fit_gated as fit_gated
from .scalar import fit_scalar as fit_scalar
from .vector import fit_deep as fit_deep
from .vector import fit_vector as fit_vector

if TYPE_CHECKING:
    from .estimators import SparseLinearRecovery as SparseLinearRecovery
    from .estimators import SparseReLUClassifier as SparseReLUClassifier
    from .estimators import SparseReLURegressor as SparseReLURegressor

ESTIMATORS = ("SparseLinearRecovery", "SparseReLUClassifier", "SparseReLURegressor")
GREEDY = {"omp": omp, "iht": iht, "niht": niht, "htp": htp, "cosamp": cosamp, "aiht": aiht}  # solve(A, y, s)
CONVEX = {"basis_pursuit": basis_pursuit, "reweighted_l1": reweighted_l1, "amp": amp}  # solve(A, y)
SOLVERS = {**GREEDY, **CONVEX, "fista": fista, "ista": ista}


def __getattr__(name: str) -> Any:
    if name not in ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("sklearn") is None:
        raise UsageError(
            f"gossamer.recover.{name}",
            "needs scikit-learn, which is not installed",
            remedy='pip install "gossamer[recover]"',
        )
    from . import estimators

    return getattr(estimators, name)
