# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Closed forms of compressed sensing: phase transition, sample sizes, spectra, and the Gram matrix of gated ReLUs on
Gaussian inputs.

With z(delta) and rho(delta) the minimax threshold and the weak l1 transition of Donoho & Tanner (Donoho, Maleki &
Montanari 2009):

    rho(delta) = max_z [1 - (kappa / delta) t(z)] / [1 + z^2 - kappa t(z)],   t(z) = (1 + z^2) Phi(-z) - z phi(z)  (1)

kappa = 2 for signed x, 1 for non-negative x; rho = s / m, delta = m / d.

For x ~ N(0, I) and gates of generators h, k at angle theta (derived here; M swaps the unit vectors of h and k, 0 off
their plane):

    E[1(h.x > 0) 1(k.x > 0) x x^T] = (pi - theta) / (2 pi) I + sin(theta) / (2 pi) M                               (2)
"""

import math

import torch
from torch import Tensor

from .._errors import UsageError
from .arrays import Array, tensor, unique


def donoho_tanner(delta: float, signed: bool = True) -> float:
    """rho(delta) by (1): the largest s / m at which l1 recovers most signals from i.i.d. Gaussian measurements.

    Args:
        delta: m / d, in (0, 1).
        signed: False is for non-negative signals.

    Raises: UsageError for delta outside (0, 1).
    """
    return _transition(delta, signed)[1]


def minimax_threshold(delta: float, signed: bool = True) -> float:
    """z(delta), at which the maximum of (1) is attained: the threshold of AMP in units of the noise.

    Arguments and errors as in :func:`donoho_tanner`.
    """
    return _transition(delta, signed)[0]


def _transition(delta: float, signed: bool) -> tuple[float, float]:
    if not 0.0 < delta < 1.0:
        raise UsageError("donoho_tanner", "delta = m / d must lie in (0, 1)", got=delta)
    kappa = 2 if signed else 1

    def rho(z: float) -> float:
        tail, density = 0.5 * math.erfc(z / math.sqrt(2)), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        t = (1 + z * z) * tail - z * density
        return (1 - kappa / delta * t) / (1 + z * z - kappa * t)

    low, high = (0.0, 8.0) if signed else (-3.0, 8.0)
    grid = [low + (high - low) * i / 400 for i in range(1 if signed else 0, 401)]
    best = max(grid, key=rho)
    low, high, golden = best - (high - low) / 400, best + (high - low) / 400, (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if rho(a) > rho(b) else (a, high)
    return (low + high) / 2, rho((low + high) / 2)


def measurements(s: int, d: int) -> float:
    """2 s ln(d / s) + 5/4 s + 1: a sufficient number of Gaussian measurements for l1.

    Chandrasekaran, Recht, Parrilo & Willsky 2012, cited from memory.
    """
    return 2 * s * math.log(d / s) + 1.25 * s + 1 if s else 1.0


def edges(s: int, m: int) -> tuple[float, float]:
    """(1 -+ sqrt(s / m))^2: the limits of the extreme eigenvalues of A_S^T A_S of one Gaussian support.

    Marchenko & Pastur 1967.
    """
    root = math.sqrt(s / m)
    return max(0.0, 1 - root) ** 2, (1 + root) ** 2


def edge_law(s: int, m: int) -> float:
    """2 sqrt(s / m) + s / m: the limit of ||A_S^T A_S - I|| for one Gaussian support of s columns and m rows."""
    return edges(s, m)[1] - 1


def welch(m: int, d: int) -> float:
    """The smallest possible coherence of d unit vectors in m dimensions (Welch 1974)."""
    return math.sqrt(max(0.0, (d - m) / (m * (d - 1)))) if d > 1 else 0.0


def gated_gram(generators: Array, neuron: Array, feature: Array) -> Tensor:
    """E[A_S^T A_S] / n of a gated-ReLU operator on inputs N(0, I), by (2).

    Args:
        generators: h (p, d), float64.
        neuron, feature: of the coefficients S, (s,) int64 each.

    Returns: (s, s).
    """
    who = "theory.gated_gram"
    j, i = tensor(who, "neuron", neuron), tensor(who, "feature", feature)
    h = tensor(who, "generators", generators).double()
    h = h / h.abs().amax(1, keepdim=True)  # no square overflows or vanishes
    unit = h / h.norm(dim=1, keepdim=True)
    which, at = unique(j)
    u = unit[which]
    cos = (u @ u.T).clamp(-1, 1)
    theta = cos.acos().fill_diagonal_(0.0)
    on = u[at][:, i]  # [a, b] = unit generator of a's neuron at b's feature
    same = (i[:, None] == i[None, :]).double()
    angle, c = theta[at][:, at], cos[at][:, at]
    # M swaps h and k on their plane and is linear there. With e = k - c h, |e| = sin:
    # M = [h k^T + k h^T - c (h h^T + k k^T)] / sin^2 (check: M h = (c h + k - c h - c^2 k) / sin^2 = k)
    own = on.diagonal()  # h_a at its own feature
    hk = own[:, None] * own[None, :] + on.T * on  # entry (i_a, i_b) of h k^T + k h^T, where h is a's and k is b's
    hh = own[:, None] * on + on.T * own[None, :]  # ... of h h^T + k k^T
    sine = angle.sin()
    swap = torch.where(sine > 1e-7, (hk - c * hh) / sine.clamp_min(1e-7), 0.0)  # sin(theta) M
    return ((math.pi - angle) * same + swap) / (2 * math.pi)
