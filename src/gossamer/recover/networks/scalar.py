# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Sparse two-layer ReLU networks with one output, by IHT on the convex reformulation.   arXiv 2509.20323

Sequential convex updates: after each IHT step on the gated model (gated.py) the gates follow the weights. One round:

    w <- H_k(w + eta A^T (y - A w))                           the step of AIHT, ids j d + i                        (1)
    w <- refined on its support                               Armijo steps                                         (2)
    sigma_j <- the sign for which 1[sigma_j X w_j > 0] agrees better with D_j,  D_j <- 1[sigma_j X w_j > 0]        (3)
    ``newton`` times: w <- w + t (argmin ||A_S w - y|| - w), D_j as in (3), t halved until the loss falls          (4)

and the network is sum_j sigma_j (sigma_j X w_j)_+ . The differences from the authors' code, with the reasons:

    signs          In theirs sigma = +1 always. After the first update it can only represent non-negative output
                   weights.
    dead neurons   In theirs the weights of a neuron are its gate, so the gate of a neuron without weights stays closed
                   forever. Here a neuron without weights gets a new random gate each round, from the seed. It can then
                   explain the residual of the other neurons.
    inflation      k falls cubically from ``inflate`` s to s over the first ``shrink`` of the rounds: s~ > s of the
                   theorem.
    (4)            Theirs makes only gradient steps. On a fixed support with fixed gates the problem is least squares.
                   (4) solves it: a damped Gauss-Newton method, which is exact once the true gates are found.
    step size      If (4) has made the gradient on the support zero, eta is computed on support and candidates
                   together.

With mini-batches each of (1)-(3) uses one batch, and (4) is off by default. The best round with at most s non-zeros is
returned. State: s coefficients, p signs, and p gates as bits for the samples of a round. Cost per round:
4 n d p for gates and gradient, and least squares of n x s.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..._errors import UsageError, check_at_least, check_count
from ..arrays import Array
from ..gates import generator, packed, random_generators
from ..operators import GatedReLU
from ..solvers.aiht import refined
from ..solvers.niht import step_size
from ..solvers.thresholding import hard, least_squares, sense, spread
from ..units import beyond, exponent, put_back, shifted, times
from .data import inputs
from .gated import products
from .relu import Fit, ReLUNetwork


def fit_scalar(
    X: Array,
    y: Array,
    s: int,
    *,
    neurons: int = 64,
    rounds: int = 60,
    inflate: float = 4.0,
    shrink: float = 0.6,
    refine: int = 10,
    newton: int | None = None,
    signs: bool = True,
    revive: bool = True,
    batch: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    on_round: Callable[[int, float], object] | None = None,
) -> Fit:
    """Fits a two-layer ReLU network with one output and at most s non-zero fused coefficients.

    Args:
        X: inputs (n, d), float32 or float64.
        y: targets (n,), of the same precision.
        s: largest number of non-zeros.
        neurons: largest number of hidden neurons.
        rounds: rounds of (1)-(4); with mini-batches, passes over the data.
        inflate: initial size of the support over its final size.
        shrink: fraction of the rounds after which the support has size s.
        refine: number of Armijo steps (2).
        newton: number of steps (4). None is 5 on full batches and 0 on mini-batches.
        signs: choose the signs sigma; False sets all to +1, as the authors do.
        revive: give neurons without weights new random gates; False does not, as the authors do.
        batch: samples per step; None is all.
        tolerance: the fit stops at this mean squared error over the mean square of y. Default 1e-16 in float64, 1e-12
            in float32.
        seed: seed of gates and batches; the result depends on it.
        on_round: called with (round, loss).

    Raises: UsageError if shapes or counts do not fit, or the data hold NaN or infinities.
    """
    x, target = _checked(X, y, s, neurons, rounds, refine, batch)
    check_at_least("fit_scalar", "inflate", inflate, 1.0)
    least = (1e-16 if x.dtype == torch.float64 else 1e-12) if tolerance is None else tolerance
    newton = (5 if batch is None or batch >= len(x) else 0) if newton is None else newton
    rules = _Rules(s, neurons, rounds, inflate, shrink, refine, newton, signs, revive, batch, seed)
    a, b = (
        exponent(x),
        exponent(target),
    )  # X = 2^a X', y = 2^b y', w = 2^(b - a) w'; the losses of y are 4^b times those of y'
    best, losses, converged, reason = _iterated(shifted(x, -a), shifted(target, -b), rules, least, b, on_round)
    w, features = put_back(best.w, b - a), x.shape[1]
    if w is None:
        nothing = ReLUNetwork.scalar(best.ids[:0], best.w[:0], best.signs, features)
        return Fit(nothing, losses, False, beyond("the network", best.w, b - a))
    return Fit(ReLUNetwork.scalar(best.ids[w != 0], w[w != 0], best.signs, features), losses, converged, reason)


class _Rules(NamedTuple):
    """The settings of :func:`fit_scalar`."""

    s: int
    neurons: int
    rounds: int
    inflate: float
    shrink: float
    refine: int
    newton: int
    signs: bool
    revive: bool
    batch: int | None
    seed: int

    def size(self, t: int, coefficients: int) -> int:
        """k in round t; the first round is 0."""
        if self.inflate == 1:
            return self.s
        left = max(0.0, 1 - t / max(self.shrink * self.rounds, 1e-9)) ** 3
        return min(round(self.s * (1 + (self.inflate - 1) * left)), coefficients)


class _State(NamedTuple):
    ids: Tensor
    w: Tensor
    signs: Tensor  # (p,) of +-1

    def predict(self, X: Tensor) -> Tensor:
        """The network's output, (n,)."""
        used, z = products(X, self.ids, self.w, X.shape[1])
        return (z * self.signs[used]).clamp_min(0) @ self.signs[used]


def _checked(
    X: Array, y: Array, s: int, neurons: int, rounds: int, refine: int, batch: int | None
) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and targets (n,). Raises UsageError."""
    who = "fit_scalar"
    x, target = inputs(who, X, y)
    for name, value, least in (("s", s, 0), ("neurons", neurons, 1), ("rounds", rounds, 1), ("refine", refine, 0)):
        check_count(who, name, value, least)
    if target.shape[1] != 1:
        remedy = "use fit_vector for several outputs"
        raise UsageError(who, "y must have one column", got=tuple(target.shape), remedy=remedy)
    d = x.shape[1]
    if s > neurons * d:
        what = f"{neurons} neurons on {d} inputs have {neurons * d} coefficients"
        raise UsageError(who, f"{what}, and cannot have {s} non-zeros")
    if batch is not None:
        check_count(who, "batch", batch, 1)
    return x, target[:, 0]


def _iterated(
    X: Tensor, y: Tensor, rules: _Rules, tolerance: float, b: int, on_round: Callable[[int, float], object] | None
) -> tuple[_State, list[float], bool, str]:
    """Runs all rounds. Returns the best state, the losses in units of the given y, converged, and the reason."""
    n, d = X.shape
    state = _State(torch.empty(0, dtype=torch.int64, device=X.device), X.new_empty(0), X.new_ones(rules.neurons))
    losses: list[float] = []
    best, best_loss = state, float(y.square().mean())
    least = tolerance * best_loss
    for t in range(rules.rounds):
        k = rules.size(t, rules.neurons * d)
        for i, where in enumerate(_batches(n, rules.batch, rules.seed, t)):
            xb, yb = (X, y) if where is None else (X[where], y[where])
            state = _round(xb, yb, state, k, rules, t, i)
        loss = float((state.predict(X) - y).square().mean())
        losses.append(times(loss, 2 * b))
        if on_round is not None:
            on_round(t + 1, losses[-1])
        if state.ids.numel() <= rules.s and loss <= best_loss:
            best, best_loss = state, loss
            if loss <= least:
                return best, losses, True, f"the loss is down to {losses[-1]:.2g}"
    return best, losses, False, f"all {rules.rounds} rounds were used"


def _round(X: Tensor, y: Tensor, now: _State, k: int, rules: _Rules, t: int, b: int) -> _State:
    """(1)-(4) on batch b of round t."""
    d = X.shape[1]
    used, z = products(X, now.ids, now.w, d)
    A, sigma = _gated(X, now, used, z, rules, t, b)
    r = y - (z * now.signs[used]).clamp_min(0) @ now.signs[used]
    ids, g = sense(A, r, now.ids, k)
    on = torch.searchsorted(ids, now.ids)
    columns = A.columns(ids)
    if not on.numel():
        eta = step_size(g, columns)
    else:
        eta = step_size(g[on], columns[:, on])
        eta = max(eta, step_size(g, columns)) if rules.newton else eta
    S, w = hard(ids, spread(ids, now.ids, now.w) + eta * g, k)  # (1)
    w = refined(columns[:, torch.searchsorted(ids, S)], y, w, rules.refine)  # (2)
    used, z = products(X, S, w, d)
    if rules.signs:
        agreement = ((2 * A.gates(used).T.to(X.dtype) - 1) * z).sum(0)
        sigma[used] = torch.where(agreement < 0, -1.0, 1.0).to(X.dtype)  # (3)
    now = _State(S, w, sigma)
    for _ in range(rules.newton):
        following = _newton(X, y, now)  # (4)
        if following is None:
            break
        now = following
    return now


def _gated(X: Tensor, now: _State, used: Tensor, z: Tensor, rules: _Rules, t: int, b: int) -> tuple[GatedReLU, Tensor]:
    """The operator of the current gates, with new random gates for the neurons without weights; and the signs."""
    n, p = X.shape[0], now.signs.numel()
    if rules.revive or t == b == 0:
        bits = _scouts(X, p, rules.seed, t if rules.revive else 0, b if rules.revive else 0)
    else:
        bits = torch.zeros(p, -(-n // 8), dtype=torch.uint8, device=X.device)  # no gate is open
    bits[used] = packed([z * now.signs[used] > 0]) if used.numel() else bits[used]
    sigma = now.signs.clone()
    if rules.revive:
        idle = torch.ones(p, dtype=torch.bool, device=X.device)
        idle[used] = False
        sigma[idle] = 1.0
    return GatedReLU.of_gates(X, bits), sigma


def _newton(X: Tensor, y: Tensor, now: _State) -> _State | None:
    """One step (4); None if no step length lowers the loss."""
    d = X.shape[1]
    used, z = products(X, now.ids, now.w, d)
    sigma = now.signs[used]
    gates = packed([z * sigma > 0])
    at = torch.searchsorted(used, now.ids // d)
    target = least_squares(GatedReLU.of_gates(X, gates).columns(at * d + now.ids % d), y)
    loss, step = float(((z * sigma).clamp_min(0) @ sigma - y).square().sum()), 1.0
    while step > 1e-3:
        trial = _State(now.ids, now.w + step * (target - now.w), now.signs)
        if float((trial.predict(X) - y).square().sum()) < loss * (1 - 1e-4 * step):
            return trial
        step /= 2
    return None


def _scouts(X: Tensor, p: int, seed: int, t: int, b: int) -> Tensor:
    """Random gates of all p neurons for one step, as bits."""
    state = int(torch.randint(2**62, (), generator=generator(seed, t, b)))
    step = max(64, (1 << 21) // sum(X.shape) // 64 * 64)
    blocks = (range(first, min(first + step, p)) for first in range(0, p, step))
    return packed(X @ random_generators(state, block, X.shape[1]).to(X).T > 0 for block in blocks)


def _batches(n: int, batch: int | None, seed: int, t: int) -> list[Tensor | None]:
    """The samples of each batch of a pass over the data; None is all samples."""
    if batch is None or batch >= n:
        return [None]
    return list(torch.split(torch.randperm(n, generator=generator(seed, t, 1 << 20)), batch))
