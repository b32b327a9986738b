# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""ReLU networks with known gates as linear measurements.   Mishkin, Sahiner & Pilanci 2022 (gated ReLU models)

    A = [D_1 X ... D_p X],   D_j = diag 1[X h_j > 0]
    A w = sum_j D_j X w_j = sum_j (X u_j)_+ v_j      with w_j = u_j v_j, if the gates of u_j are those of h_j

Coefficient (j, i) belongs to input i of neuron j and has id j d + i. State: X, and one bit per sample and neuron. A is
never made. Its products take a block of neurons at a time, n d p multiply-adds each.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._backend.dispatch import run
from ..._errors import UsageError, check_count
from ...products.linear.op import FORWARD
from ...support import Support
from ..arrays import Array, tensor, unique
from ..gates import DRAWN, packed, random_generators, unpacked
from .protocol import BLOCK_NUMBERS, PRECISIONS, Operator


class GatedReLU(Operator):
    """The convex model of a two-layer ReLU network whose gates are known: A = [D_1 X ... D_p X].

    A x of a sparse x uses the library's sparse kernels and only the neurons with a non-zero coefficient.

    Args:
        X: inputs (n, d), float32 or float64. They are not copied.
        generators: h (p, d). :meth:`random` draws them from a seed and does not store them.

    Raises: UsageError for inputs or generators of another shape or dtype.
    """

    def __init__(self, X: Array, generators: Array):
        x, h = _inputs("GatedReLU", X), tensor("GatedReLU", "generators", generators)
        if h.dim() != 2 or h.shape[1] != x.shape[1] or not len(h):
            what = f"generators must be (neurons, {x.shape[1]}), at least one"
            raise UsageError("GatedReLU", what, got=tuple(h.shape))
        parts = (_directions(part).to(x.dtype) for part in torch.split(h, _neurons_at_a_time(x)))
        self._take(x, packed(x @ part.T > 0 for part in parts))

    @staticmethod
    def random(X: Array, neurons: int, seed: int = 0) -> "GatedReLU":
        """``neurons`` generators h_j ~ N(0, I) from a seed, as :func:`random_generators` draws them."""
        x = _inputs("GatedReLU.random", X)
        check_count("GatedReLU.random", "neurons", neurons, 1)
        step = -(-_neurons_at_a_time(x) // DRAWN) * DRAWN
        blocks = (range(first, min(first + step, neurons)) for first in range(0, neurons, step))
        parts = (random_generators(seed, block, x.shape[1]).to(x) for block in blocks)
        return GatedReLU.of_gates(x, packed(x @ part.T > 0 for part in parts))

    @staticmethod
    def of_gates(X: Array, bits: Array) -> "GatedReLU":
        """The operator of gates in the form of :func:`packed`, (p, ceil(n / 8)) uint8."""
        made = GatedReLU.__new__(GatedReLU)
        made._take(_inputs("GatedReLU.of_gates", X), tensor("GatedReLU.of_gates", "bits", bits))
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
        used = (x != 0).any(1).nonzero().flatten()
        for part in torch.split(used, _neurons_at_a_time(self.X)):
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
        which, at = unique(ids // self.features)
        return self.X[:, ids % self.features] * self.gates(which).T[:, at]

    def norms(self) -> Tensor:
        step, squares = _neurons_at_a_time(self.X), self.X.square()
        starts = range(0, self.neurons, step)
        return torch.cat([(self.gates(slice(k, k + step)).to(self.dtype) @ squares).sqrt().flatten() for k in starts])


# -------------------------------------------------------------------- details


def _neurons_at_a_time(X: Tensor) -> int:
    return max(1, BLOCK_NUMBERS // (X.shape[0] + X.shape[1]))


def _inputs(who: str, X: Array) -> Tensor:
    x = tensor(who, "X", X)
    if x.dim() != 2 or x.dtype not in PRECISIONS or not x.numel():
        raise UsageError(who, "X must be (samples, features), float32 or float64", got=(tuple(x.shape), x.dtype))
    return x


def _directions(h: Tensor) -> Tensor:
    """Generators (k, d), each divided by a power of two near its largest entry, float64.

    A gate depends on the direction of its generator only. At this size X h neither overflows nor vanishes.
    """
    h = h.double()
    return torch.ldexp(h, -torch.frexp(h.abs().amax(1, keepdim=True))[1])
