"""Sparse two-layer ReLU networks with one output, by IHT on the convex reformulation.   arXiv 2509.20323

Fixed gates (:func:`fit_gated`): y = A w, A = [D_1 X ... D_p X], D_j = diag 1[X h_j > 0], by any solver: the setting of the theorems.

Sequential convex updates (:func:`fit_scalar`): after each IHT step the gates follow the weights. One round:

    w <- H_k(w + eta A^T (y - A w))                           the solver AIHT's step, ids j d + i                             (1)
    w <- refined on its support                               Armijo steps                                                    (2)
    sigma_j <- the sign for which 1[sigma_j X w_j > 0] agrees better with D_j,   D_j <- 1[sigma_j X w_j > 0]                  (3)
    ``newton`` times: w <- w + t (argmin ||A_S w - y|| - w), D_j as in (3), t halved until the network's loss falls           (4)

and the network is sum_j sigma_j (sigma_j X w_j)_+ . What differs from the authors' code, and why:

    signs       theirs has sigma = +1 throughout: after the first update only non-negative output weights can be represented
    the dead    theirs takes a neuron's weights for its gate, so that a neuron without weights has a closed gate, for ever. Here it gets a
                new random gate each round, from the seed: a scout for what the others leave over
    inflation   k falls from ``inflate`` s to s over the first ``shrink`` of the rounds, cubically: the theorem's s~ > s
    (4)         theirs makes gradient steps only. On a fixed support and gates the problem is least squares: (4) solves it and is a damped
                Gauss-Newton method for the network itself, which ends exactly where the true gates are found
    step size   where (4) has spent the gradient on the support, eta is computed on support and candidates together

With mini-batches (1)-(3) see a batch each, and (4) is left out unless asked for. The best round with at most s non-zeros is returned.
State: s coefficients, p signs, and for the samples of a round p gates as bits. Cost per round: 4 n d p for gates and gradient, and
least squares of n x s.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import UsageError, check_at_least, check_count
from .aiht import refined
from .arrays import tensor
from .gates import generator, packed, random_generators
from .networks import GatedNetwork, ReLUNetwork, inputs, products
from .niht import niht, step_size
from .operators import GatedReLU, Stacked
from .recovery import Recovery, hard, least_squares, sense, spread
from .units import beyond, exponent, put_back, shifted, times


class Fit(NamedTuple):
    """A fitted network; ``losses``: mean squared error (or the loss asked for) after each round, the best of them the network's;
    ``converged`` and ``reason``, a sentence on why it ended."""

    network: ReLUNetwork
    losses: list[float]
    converged: bool
    reason: str


def fit_gated(
    X: Any,
    Y: Any,
    s: int,
    *,
    generators: Any = None,
    neurons: int = 64,
    seed: int = 0,
    solver: Callable[..., Recovery] = niht,
    **settings: Any,
) -> GatedNetwork:
    """The s-sparse coefficients of a network with fixed gates; several outputs share the gates, and s among them.

    Args:
        X: inputs (n, d), float32 or float64; Y: targets (n,) or (n, k).
        s: non-zeros in all.
        generators: h (p, d); None draws ``neurons`` of them from ``seed``.
        solver: ``niht``, ``htp``, ``aiht``, ``cosamp``, ``iht`` or ``omp``; ``settings`` go to it.

    Raises: UsageError as the solver.
    """
    X, Y = inputs("fit_gated", X, Y)
    if not callable(solver):
        raise UsageError("fit_gated", "solver is a function, as recover.niht", got=solver)
    generators = None if generators is None else tensor("fit_gated", "generators", generators)
    gates = GatedReLU.random(X, neurons, seed) if generators is None else GatedReLU(X, generators)
    A = gates if Y.shape[1] == 1 else Stacked(gates, Y.shape[1])
    found = solver(A, Y.flatten(), s, **settings)
    return GatedNetwork(found, gates.neurons, gates.features, Y.shape[1], generators, seed)


def fit_scalar(
    X: Any,
    y: Any,
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
    """A two-layer ReLU network with one output and at most s non-zero fused coefficients.

    Args:
        X: inputs (n, d), float32 or float64; y: targets (n,), of the same precision.
        s: non-zeros.
        neurons: hidden neurons that may be used.
        rounds: of (1)-(4); with mini-batches, passes over the data.
        inflate, shrink: the support begins ``inflate`` times as large and has size s from the share ``shrink`` of the rounds on.
        refine: Armijo steps (2); newton: steps (4), None is 5 on full batches and 0 on mini-batches.
        signs, revive: False are the authors' conventions.
        batch: samples per step; None is all.
        tolerance: stops at this mean squared error over the mean square of y; default 1e-16 in float64, 1e-12 in float32.
        seed: of gates and batches; the result follows from it.
        on_round: called with (round, loss).

    Raises: UsageError if shapes or counts do not fit, or the data hold NaN or infinities.
    """
    who = "fit_scalar"
    X, Y = inputs(who, X, y)
    n, d = X.shape
    for name, value, least in (("s", s, 0), ("neurons", neurons, 1), ("rounds", rounds, 1), ("refine", refine, 0)):
        check_count(who, name, value, least)
    check_at_least(who, "inflate", inflate, 1.0)
    if Y.shape[1] != 1:
        raise UsageError(who, "y must have one column", got=tuple(Y.shape), remedy="fit_vector for several outputs")
    if s > neurons * d:
        raise UsageError(
            who,
            f"{neurons} neurons on {d} inputs have {neurons * d} coefficients, fewer than the {s} non-zeros asked for",
        )
    if batch is not None:
        check_count(who, "batch", batch, 1)
    tolerance = (1e-16 if X.dtype == torch.float64 else 1e-12) if tolerance is None else tolerance
    a, b = exponent(X), exponent(Y)  # X = 2^a X', y = 2^b y', w = 2^(b - a) w', losses are 4^b times what they are here
    X, y = shifted(X, -a), shifted(Y[:, 0], -b)
    state = _State(torch.empty(0, dtype=torch.int64, device=X.device), X.new_empty(0), X.new_ones(neurons))
    newton = (5 if batch is None or batch >= n else 0) if newton is None else newton
    least, losses, best, best_loss = tolerance * float(y.square().mean()), [], state, float(y.square().mean())
    reason, converged = f"all {rounds} rounds were used", False
    for t in range(rounds):
        k = (
            s
            if inflate == 1
            else min(round(s * (1 + (inflate - 1) * max(0.0, 1 - t / max(shrink * rounds, 1e-9)) ** 3)), neurons * d)
        )
        for i, where in enumerate(_batches(n, batch, seed, t)):
            Xb, yb = (X, y) if where is None else (X[where], y[where])
            state = _round(Xb, yb, state, k, refine, newton, signs, revive, seed, t, i)
        loss = float((state.predict(X) - y).square().mean())
        losses.append(times(loss, 2 * b))
        if on_round is not None:
            on_round(t + 1, losses[-1])
        if state.ids.numel() <= s and loss <= best_loss:
            best, best_loss = state, loss
            if loss <= least:
                reason, converged = f"the loss is down to {losses[-1]:.2g}", True
                break
    w = put_back(best.w, b - a)
    if w is None:
        return Fit(
            ReLUNetwork.scalar(best.ids[:0], best.w[:0], best.signs, d),
            losses,
            False,
            beyond("the network", best.w, b - a),
        )
    return Fit(ReLUNetwork.scalar(best.ids[w != 0], w[w != 0], best.signs, d), losses, converged, reason)


class _State(NamedTuple):
    ids: Tensor
    w: Tensor
    signs: Tensor  # (p,) of +-1

    def predict(self, X: Tensor) -> Tensor:
        used, z = products(X, self.ids, self.w, X.shape[1])
        return (z * self.signs[used]).clamp_min(0) @ self.signs[used]


def _round(
    X: Tensor,
    y: Tensor,
    now: _State,
    k: int,
    refine: int,
    newton: int,
    signs: bool,
    revive: bool,
    seed: int,
    t: int,
    b: int,
) -> _State:
    (n, d), p = X.shape, now.signs.numel()
    used, z = products(X, now.ids, now.w, d)
    if revive or t == b == 0:
        bits = _scouts(X, p, seed, t if revive else 0, b if revive else 0)
    else:
        bits = torch.zeros(p, -(-n // 8), dtype=torch.uint8, device=X.device)  # no gate is open
    bits[used] = packed([z * now.signs[used] > 0]) if used.numel() else bits[used]
    A = GatedReLU.of_gates(X, bits)
    sigma = now.signs.clone()
    if revive:
        idle = torch.ones(p, dtype=torch.bool, device=X.device)
        idle[used] = False
        sigma[idle] = 1.0
    r = y - (z * now.signs[used]).clamp_min(0) @ now.signs[used]
    ids, g = sense(A, r, now.ids, k)
    on = torch.searchsorted(ids, now.ids)
    columns = A.columns(ids)
    eta = (
        max(step_size(g[on], columns[:, on]), step_size(g, columns))
        if newton or not on.numel()
        else step_size(g[on], columns[:, on])
    )
    S, w = hard(ids, spread(ids, now.ids, now.w) + eta * g, k)  # (1)
    w = refined(columns[:, torch.searchsorted(ids, S)], y, w, refine)  # (2)
    used, z = products(X, S, w, d)
    if signs:
        agreement = ((2 * A.gates(used).T.to(X.dtype) - 1) * z).sum(0)
        sigma[used] = torch.where(agreement < 0, -1.0, 1.0).to(X.dtype)  # (3)
    now = _State(S, w, sigma)
    for _ in range(newton):  # (4)
        r = (z * sigma[used]).clamp_min(0) @ sigma[used] - y
        gates = packed([z * sigma[used] > 0])
        at = torch.searchsorted(used, S // d)
        target = least_squares(GatedReLU.of_gates(X, gates).columns(at * d + S % d), y)
        loss, step = float(r.square().sum()), 1.0
        while step > 1e-3:
            trial = _State(S, now.w + step * (target - now.w), sigma)
            if float((trial.predict(X) - y).square().sum()) < loss * (1 - 1e-4 * step):
                break
            step /= 2
        else:
            break
        now = trial
        used, z = products(X, S, now.w, d)
    return now


def _scouts(X: Tensor, p: int, seed: int, t: int, b: int) -> Tensor:
    """Random gates of all p neurons for one step, as bits."""
    state = int(torch.randint(2**62, (), generator=generator(seed, t, b)))
    step = max(64, (1 << 21) // sum(X.shape) // 64 * 64)
    parts = (
        random_generators(state, range(first, min(first + step, p)), X.shape[1]).to(X) for first in range(0, p, step)
    )
    return packed(X @ part.T > 0 for part in parts)


def _batches(n: int, batch: int | None, seed: int, t: int) -> list[Tensor | None]:
    if batch is None or batch >= n:
        return [None]
    return list(torch.randperm(n, generator=generator(seed, t, 1 << 20)).split(batch))
