"""Linear operators: what a sensing matrix A (rows, cols) must offer to be solved with. None of them need be stored.

    matvec(x)       A x                     (cols,) -> (rows,)
    adjoint(r)      A^T r, block by block   (rows,) -> pairs (first column, values), columns in order
    columns(ids)    A_S, made explicitly    (k,) int64 -> (rows, k)
    norms()         Euclidean norms of all columns, (cols,)

    Dense           a matrix in memory                                                                   rows cols numbers
    Gaussian        N(0, 1/rows), made from a seed a block of columns at a time                          nothing
    SubsampledDCT   random rows of the orthonormal cosine transform (DCT-II), scaled; FFTs               rows int64
    GatedReLU       [D_1 X ... D_p X], D_j = diag 1[X h_j > 0]: ReLU networks as linear measurements     X and n p / 8 bytes of gates
    Stacked         A on each of k right-hand sides at once: coefficient (c, o) has id c k + o           that of A

``rmatvec`` is the whole of ``adjoint``. What streams through ``adjoint`` is at most ``BLOCK_NUMBERS`` numbers at a time, so that a
solver that keeps the s best needs O(s + block) besides the operator itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._backend.dispatch import run
from .._errors import UsageError, check_count
from ..products.linear.op import FORWARD
from ..support import Support, distinct
from .arrays import is_sparse, tensor
from .gates import DRAWN, generator, packed, random_generators, unpacked

BLOCK_NUMBERS = 1 << 21  # numbers made at a time while streaming
PRECISIONS = (torch.float32, torch.float64)


class Operator(ABC):
    """A linear map of shape (rows, cols). ``matvec``, ``adjoint``, ``columns`` and ``norms`` are what a new one must define."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matvec(self, x: Tensor) -> Tensor:
        """A x: (cols,) -> (rows,)."""

    @abstractmethod
    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        """A^T r a block of columns at a time, in order: (rows,) -> pairs (first column, (block,))."""

    @abstractmethod
    def columns(self, ids: Tensor) -> Tensor:
        """The columns of the given ids, (k,) int64 -> (rows, k)."""

    @abstractmethod
    def norms(self) -> Tensor:
        """Euclidean norms of all columns, (cols,)."""

    def rmatvec(self, r: Tensor) -> Tensor:
        """A^T r: (rows,) -> (cols,)."""
        return torch.cat([block for _, block in self.adjoint(r)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {str(self.dtype).removeprefix('torch.')})"


class Dense(Operator):
    """A matrix in memory.

    Args:
        matrix: (rows, cols), float32 or float64, a tensor or an array; not copied.
    """

    def __init__(self, matrix: Any):
        matrix = tensor("Dense", "the matrix", matrix)
        if matrix.dim() != 2 or matrix.dtype not in PRECISIONS:
            got = (tuple(matrix.shape), matrix.dtype)
            raise UsageError("Dense", "the matrix must have two dimensions and be float32 or float64", got=got)
        self.matrix = matrix.detach()
        self.shape, self.dtype, self.device = (matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device

    def matvec(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.matrix.T @ r

    def columns(self, ids: Tensor) -> Tensor:
        return self.matrix[:, ids]

    def norms(self) -> Tensor:
        return self.matrix.norm(dim=0)


class Gaussian(Operator):
    """Independent N(0, 1/rows) entries, made anew from the seed whenever they are needed and never stored.

    Args:
        rows, cols: of the matrix.
        seed: decides every entry, on any device: blocks of ``DRAWN`` columns are drawn on the CPU, each from its own state.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ):
        check_count("Gaussian", "rows", rows, 1)
        check_count("Gaussian", "cols", cols, 1)
        self.shape, self.seed, self.dtype, self.device = (rows, cols), seed, dtype, torch.device(device)

    def _block(self, k: int) -> Tensor:
        """Columns [k DRAWN, (k + 1) DRAWN), (rows, at most DRAWN)."""
        width = min(DRAWN, self.shape[1] - k * DRAWN)
        drawn = torch.randn(width, self.shape[0], generator=generator(self.seed, k), dtype=torch.float64)
        return drawn.T.to(self.device, self.dtype) / self.shape[0] ** 0.5

    def matvec(self, x: Tensor) -> Tensor:
        y = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for k, part in enumerate(x.split(DRAWN)):
            if bool(part.any()):  # a sparse x needs few blocks
                y += self._block(k) @ part
        return y

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        for k in range(-(-self.shape[1] // DRAWN)):
            yield k * DRAWN, self._block(k).T @ r

    def columns(self, ids: Tensor) -> Tensor:
        found = torch.empty(self.shape[0], ids.numel(), dtype=self.dtype, device=self.device)
        block = ids // DRAWN
        for k in block.unique().tolist():
            at = (block == k).nonzero().flatten()
            found[:, at] = self._block(k)[:, ids[at] - k * DRAWN]
        return found

    def norms(self) -> Tensor:
        return torch.cat([self._block(k).norm(dim=0) for k in range(-(-self.shape[1] // DRAWN))])


class SubsampledDCT(Operator):
    """Random rows of the orthonormal DCT-II of size cols, scaled by sqrt(cols / rows) so that columns have unit norm on average.

    Products take O(cols log cols) by FFT (a DCT of size d is the real part of an FFT of size 2 d, its input padded with zeros).

    Args:
        rows: how many of the ``cols`` rows of the transform are kept.
        cols: size of the transform.
        seed: of the choice.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ):
        check_count("SubsampledDCT", "rows", rows, 1)
        if rows > cols:
            raise UsageError("SubsampledDCT", f"a transform of size {cols} has no {rows} rows")
        self.shape, self.dtype, self.device = (rows, cols), dtype, torch.device(device)
        self.kept = distinct(cols, rows, generator(seed, 0)).to(self.device)  # frequencies
        self.scale = torch.where(self.kept == 0, (1 / rows) ** 0.5, (2 / rows) ** 0.5).to(
            dtype
        )  # sqrt(d/m) times the orthonormal scale
        turn = torch.arange(cols, device=self.device, dtype=torch.float64) * (-torch.pi / (2 * cols))
        self.turn = torch.polar(torch.ones_like(turn), turn).to(
            torch.complex128 if dtype == torch.float64 else torch.complex64
        )

    def matvec(self, x: Tensor) -> Tensor:
        waves = (
            torch.fft.fft(x, 2 * self.shape[1])[: self.shape[1]] * self.turn
        )  # Re: sum_j x_j cos(pi k (2 j + 1) / 2 d)
        return waves.real[self.kept] * self.scale

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        full = self.turn.new_zeros(self.shape[1])
        full[self.kept] = (r * self.scale).to(full.dtype)
        yield 0, torch.fft.fft(full * self.turn, 2 * self.shape[1])[: self.shape[1]].real

    def columns(self, ids: Tensor) -> Tensor:
        phase = self.kept[:, None].double() * (2 * ids[None, :] + 1).double() * (torch.pi / (2 * self.shape[1]))
        return phase.cos().to(self.dtype) * self.scale[:, None]

    def norms(self) -> Tensor:
        step = max(1, BLOCK_NUMBERS // self.shape[0])
        return torch.cat(
            [self.columns(ids).norm(dim=0) for ids in torch.arange(self.shape[1], device=self.device).split(step)]
        )


class GatedReLU(Operator):
    """A = [D_1 X ... D_p X] with D_j = diag 1[X h_j > 0]: the convex model of a two-layer ReLU network whose gates are known.

    A w = sum_j D_j X w_j equals sum_j (X u_j)_+ v_j with w_j = u_j v_j wherever the gates of u_j are those of h_j. Coefficient (j, i),
    input i of neuron j, has id j d + i. Held: X, and one bit per sample and neuron. A is never made; its products go a block of neurons
    at a time, n d p multiply-adds each. (A x of a sparse x runs on the library's sparse kernels, over the neurons that it uses.)

    Args:
        X: inputs (n, d), float32 or float64; not copied.
        generators: h (p, d).

    :meth:`random` draws the generators from a seed and keeps none of them. Mishkin, Sahiner & Pilanci 2022 (gated ReLU models).
    """

    def __init__(self, X: Any, generators: Any):
        X, generators = _inputs("GatedReLU", X), tensor("GatedReLU", "generators", generators)
        if generators.dim() != 2 or generators.shape[1] != X.shape[1] or not len(generators):
            raise UsageError(
                "GatedReLU", f"generators must be (neurons, {X.shape[1]}), at least one", got=tuple(generators.shape)
            )
        parts = (_directions(part).to(X.dtype) for part in generators.split(_neurons_at_a_time(X)))
        self._take(X, packed(X @ part.T > 0 for part in parts))

    @staticmethod
    def random(X: Any, neurons: int, seed: int = 0) -> "GatedReLU":
        """Generators h_j ~ N(0, I) from a seed (:func:`random_generators`), ``neurons`` of them."""
        X = _inputs("GatedReLU.random", X)
        check_count("GatedReLU.random", "neurons", neurons, 1)
        step = -(-_neurons_at_a_time(X) // DRAWN) * DRAWN
        starts = range(0, neurons, step)
        parts = (
            random_generators(seed, range(first, min(first + step, neurons)), X.shape[1]).to(X) for first in starts
        )
        return GatedReLU.of_gates(X, packed(X @ part.T > 0 for part in parts))

    @staticmethod
    def of_gates(X: Any, bits: Any) -> "GatedReLU":
        """From gates as :func:`packed` holds them, (p, ceil(n / 8)) uint8."""
        X, bits = _inputs("GatedReLU.of_gates", X), tensor("GatedReLU.of_gates", "bits", bits)
        made = GatedReLU.__new__(GatedReLU)
        made._take(X, bits)
        return made

    def _take(self, X: Tensor, bits: Tensor) -> None:
        self.X, self.bits = X.detach(), bits
        self.shape, self.dtype, self.device = (X.shape[0], X.shape[1] * bits.shape[0]), X.dtype, X.device

    @property
    def neurons(self) -> int:
        """p."""
        return self.bits.shape[0]

    @property
    def features(self) -> int:
        """d."""
        return self.X.shape[1]

    def gates(self, neurons: Tensor | slice) -> Tensor:
        """Gates of some neurons, (k, n) bool."""
        return unpacked(self.bits[neurons], self.X.shape[0])

    def matvec(self, x: Tensor) -> Tensor:
        x = x.view(self.neurons, self.features)
        y = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for part in (x != 0).any(1).nonzero().flatten().split(_neurons_at_a_time(self.X)):
            w = x[part]
            s = Support.of(w) if 8 * int(w.count_nonzero()) < w.numel() else None
            z = self.X @ w.T if s is None else run(FORWARD, self.X, w.flatten()[s.ids()], s)  # (n, k)
            y += (z * self.gates(part).T).sum(1)
        return y

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        step = _neurons_at_a_time(self.X)
        for first in range(0, self.neurons, step):
            yield first * self.features, ((self.gates(slice(first, first + step)) * r) @ self.X).flatten()

    def columns(self, ids: Tensor) -> Tensor:
        which, at = torch.unique(ids // self.features, return_inverse=True)
        return self.X[:, ids % self.features] * self.gates(which).T[:, at]

    def norms(self) -> Tensor:
        step, squares = _neurons_at_a_time(self.X), self.X.square()
        starts = range(0, self.neurons, step)
        return torch.cat([(self.gates(slice(k, k + step)).to(self.dtype) @ squares).sqrt().flatten() for k in starts])


class Stacked(Operator):
    """A on each of k right-hand sides: y (n k,) holds Y (n, k) row by row, x (cols k,) the coefficients (cols, k) row by row."""

    def __init__(self, A: Any, k: int):
        check_count("Stacked", "k", k, 1)
        A = operator(A, "Stacked")
        self.A, self.k, self.dtype, self.device = A, k, A.dtype, A.device
        self.shape = (A.shape[0] * k, A.shape[1] * k)

    def matvec(self, x: Tensor) -> Tensor:
        return torch.stack([self.A.matvec(column.contiguous()) for column in x.view(-1, self.k).T], 1).flatten()

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        streams = [self.A.adjoint(column.contiguous()) for column in r.view(-1, self.k).T]
        for parts in zip(*streams, strict=True):
            yield parts[0][0] * self.k, torch.stack([values for _, values in parts], 1).flatten()

    def columns(self, ids: Tensor) -> Tensor:
        found = torch.zeros(self.A.shape[0], self.k, ids.numel(), dtype=self.dtype, device=self.device)
        found[:, ids % self.k, torch.arange(ids.numel(), device=ids.device)] = self.A.columns(ids // self.k)
        return found.flatten(0, 1)

    def norms(self) -> Tensor:
        return self.A.norms().repeat_interleave(self.k)


class FromSciPy(Operator):
    """A ``scipy.sparse.linalg.LinearOperator``, or whatever ``aslinearoperator`` takes, as an operator here (on the CPU)."""

    def __init__(self, linear: Any):
        from scipy.sparse.linalg import aslinearoperator

        self.linear = aslinearoperator(linear)
        if np.issubdtype(self.linear.dtype or float, np.complexfloating):
            raise UsageError(
                "operator",
                "A is complex; solvers here are of real numbers",
                remedy="real and imaginary parts as rows and columns",
            )
        self.shape, self.device = (self.linear.shape[0], self.linear.shape[1]), torch.device("cpu")
        self.dtype = torch.float32 if self.linear.dtype == np.float32 else torch.float64
        try:
            self.linear.rmatvec(np.zeros(self.shape[0], dtype=self._kind))
        except NotImplementedError:
            raise UsageError(
                "operator", "A has no rmatvec, and solvers need A^T r", remedy="LinearOperator(..., rmatvec=...)"
            ) from None

    @property
    def _kind(self) -> Any:
        return np.float32 if self.dtype == torch.float32 else np.float64

    def _from(self, array: Any) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=self._kind))  # a copy: what SciPy gives may be read-only

    def matvec(self, x: Tensor) -> Tensor:
        return self._from(self.linear.matvec(x.numpy()))

    def adjoint(self, r: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 0, self._from(self.linear.rmatvec(r.numpy()))

    def columns(self, ids: Tensor) -> Tensor:
        if not ids.numel():
            return torch.empty(self.shape[0], 0, dtype=self.dtype)
        unit = np.zeros((self.shape[1], ids.numel()), dtype=self._kind)
        unit[ids.numpy(), np.arange(ids.numel())] = 1
        return self._from(self.linear.matmat(unit))

    def norms(self) -> Tensor:
        step = max(1, BLOCK_NUMBERS // sum(self.shape))
        return torch.cat([self.columns(ids).norm(dim=0) for ids in torch.arange(self.shape[1]).split(step)])


def to_scipy(A: Any) -> Any:
    """The operator, or matrix, as a ``scipy.sparse.linalg.LinearOperator`` for vectors of NumPy: the solvers of SciPy take it."""
    from scipy.sparse.linalg import LinearOperator

    A = operator(A, "to_scipy")

    def numbers(v: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(v).ravel(), dtype=A.dtype, device=A.device)

    dtype: Any = np.float32 if A.dtype == torch.float32 else np.float64
    make: Any = LinearOperator
    return make(
        shape=A.shape,
        matvec=lambda v: A.matvec(numbers(v)).cpu().numpy(),
        rmatvec=lambda v: A.rmatvec(numbers(v)).cpu().numpy(),
        dtype=dtype,
    )


def operator(A: Any, who: str = "operator") -> Operator:
    """What solvers take: an operator as it is, a matrix (tensor or array) as :class:`Dense`, a sparse matrix of SciPy, or anything with
    ``matvec`` and ``rmatvec``, as :class:`FromSciPy`."""
    if isinstance(A, Operator):
        return A
    if isinstance(A, (Tensor, np.ndarray)):
        return Dense(tensor(who, "A", A))
    if is_sparse(A) or (callable(getattr(A, "matvec", None)) and callable(getattr(A, "rmatvec", None))):
        return FromSciPy(A)
    remedy = "to_numpy() of a data frame"
    raise UsageError(
        who,
        "A must be a matrix (tensor or array), an Operator, or a SciPy LinearOperator",
        got=type(A).__name__,
        remedy=remedy,
    )


# -------------------------------------------------------------------- details


def _neurons_at_a_time(X: Tensor) -> int:
    return max(1, BLOCK_NUMBERS // (X.shape[0] + X.shape[1]))


def _inputs(who: str, X: Any) -> Tensor:
    X = tensor(who, "X", X)
    if X.dim() != 2 or X.dtype not in PRECISIONS or not X.numel():
        raise UsageError(who, "X must be (samples, features), float32 or float64", got=(tuple(X.shape), X.dtype))
    return X


def _directions(h: Tensor) -> Tensor:
    """Generators (k, d), each in units of its own size, float64: gates know no units, and X h must neither overflow nor vanish."""
    h = h.double()
    return torch.ldexp(h, -torch.frexp(h.abs().amax(1, keepdim=True))[1])
