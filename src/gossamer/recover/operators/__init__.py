"""Linear operators: sensing matrices A (rows, cols) that solvers use without storing them. One file per kind.

    Dense           a matrix in memory                                              state: rows x cols numbers
    Gaussian        N(0, 1/rows), made from a seed one block of columns at a time   state: the seed
    SubsampledDCT   random rows of the orthonormal cosine transform; FFTs           state: rows int64
    GatedReLU       [D_1 X ... D_p X], D_j = diag 1[X h_j > 0]: ReLU networks       state: X and n p / 8 bytes
    Stacked         A on each of k right-hand sides at once                         state: that of A
    FromSciPy       an operator of SciPy                                            state: that of the operator

Your own kind is a subclass of :class:`Operator` with ``matvec``, ``adjoint``, ``columns`` and ``norms``.
"""

from .conversion import Matrix, operator, to_scipy
from .cosine import SubsampledDCT
from .dense import Dense
from .from_scipy import FromSciPy
from .gated_relu import GatedReLU
from .gaussian import Gaussian
from .protocol import Operator
from .stacked import Stacked

__all__ = [
    "Dense",
    "FromSciPy",
    "GatedReLU",
    "Gaussian",
    "Matrix",
    "Operator",
    "Stacked",
    "SubsampledDCT",
    "operator",
    "to_scipy",
]
