# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportConstantRedefinition=false
"""The quality of the sensing of a layer. A batch measures the gradients of a fraction of the zeros, with noise.

    recall          a simulation of sensing: take a fraction of the zeros, average noisy batches, choose the k
                    strongest. Recall is the fraction of the truly strongest k of *all* zeros among them. The true
                    gradients are drawn by noise.py (2). The noise is drawn by the bootstrap over samples, because the
                    gradients of a batch are not independent: a batch that doubles a whole row changes no rank
                    within it                                                                                      (3)
    conditioning    sqrt(beta / alpha) of the input's columns on the support of an output row, at unit norm: how much
                    weights of the same row can mask each other on this batch. It is infinite if a row has more weights
                    than the batch has samples

:func:`measured_recall` runs the same simulation with the gradient of all data as the true gradient.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..._backend.dispatch import run
from ..._errors import UsageError, check_count, check_fraction
from ...products.conv2d import reference as conv2d
from ...products.conv2d.reference import Geometry
from ...products.sense.op import SAMPLED, top_k
from ...support import Support, distinct
from ..arrays import tensor
from .diagnosis import Diagnosis
from .noise import bootstrap, gradient_and_noise, signal
from .operands import Operands, checked
from .spectra import extremes

CALIBRATION = 1 << 19  # largest number of zeros whose noise is measured
PLAYS = 8  # number of simulations (3)
ROWS = 32  # number of output rows for the conditioning


def sensing(
    operands: Operands,
    s: Support,
    *,
    n_grow: int,
    fraction: float = 0.1,
    window: int = 1,
    decay: float = 0.9,
    geometry: Geometry | None = None,
    name: str = "layer",
    measured: float | None = None,
    rng: torch.Generator | None = None,
) -> Diagnosis:
    """Diagnoses the sensing of one layer from its operands at the current weights.

    If the gradient is 0 at all zeros, recall is that of chance, and the sentence reports it.

    Args:
        operands: (dy, x) of one or several batches, as :func:`record_operands` returns them: output gradients (B, out)
            and inputs (B, in), or images with ``geometry``. The loss must be the mean over the batch.
        s: support of the layer, of single weights.
        n_grow: number of weights that will grow.
        fraction: fraction of the zeros that is sensed.
        window: number of averaged steps, as in ``gs.CSST``.
        decay: factor of the moving average over the window, as in ``gs.CSST``.
        geometry: geometry of a convolution; None is a linear layer.
        name: name of the layer.
        measured: the result of :func:`measured_recall`, for the sentence.
        rng: generator of samples and noise; None is a fixed seed.

    Raises: UsageError if the support has blocks, if operands are missing, have one sample only, or hold NaN or
    infinities, or if a setting is out of range.
    """
    who = "diagnose.sensing"
    _check(who, s, n_grow, 0, fraction, window, decay)
    pairs = checked(who, operands)
    if min(dy.shape[0] for dy, _ in pairs) < 2:
        raise UsageError(who, "a batch of one sample cannot separate noise from signal", remedy="use larger batches")
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    zeros, batch = s.total - s.n, pairs[0][0].shape[0]
    alpha, beta = support_conditioning(pairs, s, geometry, rng)
    cond, chance = _conditioning(alpha, beta), min(n_grow, zeros) / max(zeros, 1)
    d = Diagnosis(name, batch, window, zeros, fraction, n_grow, chance, 0.0, chance, 0.0, cond, alpha, beta, measured)
    if not zeros or not n_grow or not fraction:
        return d
    n_grow = max(1, min(n_grow, round(fraction * zeros)))
    d = d._replace(n_grow=n_grow, recall=n_grow / zeros, chance=n_grow / zeros)
    ids = s.sample_outside(min(zeros, CALIBRATION), rng)
    g, v = gradient_and_noise(pairs, s, ids, geometry)
    if not bool(g.any()) and not bool(v.any()):
        return d._replace(of_sensed=min(1.0, n_grow / (fraction * zeros)), snr=math.nan)
    share, snr = signal(g, v, len(pairs), rng)
    draw, k = partial(bootstrap, pairs, s, ids, geometry, rng), max(1, round(n_grow * ids.numel() / zeros))
    recall, within = _played(g, share, draw, len(pairs), k, fraction, _weights(window, decay), rng)
    return d._replace(recall=recall, of_sensed=within, snr=snr)


def measured_recall(
    batches: Operands,
    s: Support,
    *,
    n_grow: int,
    fraction: float = 0.1,
    window: int = 1,
    decay: float = 0.9,
    geometry: Geometry | None = None,
    trials: int = 8,
    rng: torch.Generator | None = None,
) -> float:
    """Recall (3) with the mean gradient of all ``batches`` (dy, x) as the true gradient.

    Each of the ``trials`` senses a sample of the zeros on ``window`` batches. The other arguments are those of
    :func:`sensing`. Batches must have equal sizes, and the loss must be the mean over each. The gradient of all zeros
    is computed as one vector.

    Raises: UsageError as :func:`sensing`, and if nothing grows or is sensed, or the window has more steps than there
    are batches.
    """
    who = "diagnose.measured_recall"
    _check(who, s, n_grow, 1, fraction, window, decay)
    pairs, zeros = checked(who, batches), s.total - s.n
    check_count(who, "trials", trials, 1)
    if window > len(pairs):
        raise UsageError(who, f"a window of {window} steps needs at least {window} batches", got=len(pairs))
    if round(fraction * zeros) < 1:
        what = f"a fraction of {fraction} of {zeros} zeros is less than one, and nothing is sensed"
        raise UsageError(who, what, remedy="use a larger fraction")
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    everything = s.outside(torch.arange(zeros, device=s.col.device))

    def gradient(b: int, ids: Tensor) -> Tensor:
        return run(SAMPLED, *pairs[b], ids, s.shape, s.block, geometry).cpu()

    truth = _sum(gradient(b, everything) for b in range(len(pairs)))
    n_grow = min(n_grow, round(fraction * zeros))
    best = torch.zeros(zeros, dtype=torch.bool)
    best[_strongest(truth, n_grow, rng)] = True
    weights, hits = _weights(window, decay), 0
    for _ in range(trials):
        at = distinct(zeros, round(fraction * zeros), rng)
        seen: list[int] = torch.randperm(len(pairs), generator=rng)[:window].tolist()
        mean = _sum(w * gradient(b, everything[at]) for w, b in zip(weights, seen, strict=True))
        hits += int(best[at[_strongest(mean, n_grow, rng)]].sum())
    return hits / (trials * n_grow)


def support_conditioning(
    operands: Operands, s: Support, geometry: Geometry | None, rng: torch.Generator
) -> tuple[float, float]:
    """alpha and beta: extreme eigenvalues of the Gram matrix of an output row's inputs, the median over rows.

    Columns have unit norm. Only the first batch and at most 32 rows are used.
    """
    x = tensor("diagnose.support_conditioning", "x", operands[0][1])
    full = (
        torch.cat([columns for _, columns in conv2d.unfolded(x, geometry)])
        if geometry is not None
        else x.reshape(-1, s.shape[1])
    )
    rows = (s.crow.diff() > 0).nonzero().flatten()
    rows = rows[torch.randperm(rows.numel(), generator=rng)[:ROWS]]
    edges: list[tuple[float, float]] = []
    chosen: list[int] = rows.tolist()
    for i in chosen:
        a = full[:, s.col[int(s.crow[i]) : int(s.crow[i + 1])].long()].double()
        norms = torch.linalg.vector_norm(a, dim=0)
        a = a[:, norms > 0] / norms[norms > 0]
        if a.shape[1]:
            low, high = extremes(a.T @ a)
            edges.append((max(low, 0.0) if a.shape[1] <= a.shape[0] else 0.0, high))
    if not edges:
        return 1.0, 1.0
    low, high = torch.tensor(edges, dtype=torch.float64).median(0).values
    return float(low), float(high)


# -------------------------------------------------------------------- details


def _check(who: str, s: Support, n_grow: int, least: int, fraction: float, window: int, decay: float) -> None:
    """Raises UsageError if a setting is out of range."""
    if s.block != (1, 1):
        raise UsageError(who, "supports only single weights, not blocks", got=s.block)
    check_count(who, "n_grow", n_grow, least)
    check_fraction(who, "fraction", fraction)
    check_count(who, "window", window, 1)
    check_fraction(who, "decay", decay)


def _sum(parts: Iterator[Tensor]) -> Tensor:
    """Sum of at least one tensor; one at a time is in memory."""
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def _conditioning(alpha: float, beta: float) -> float:
    return math.sqrt(beta / alpha) if alpha > 1e-12 else math.inf


def _played(
    g: Tensor,
    share: Tensor,
    draw: Callable[[], Tensor],
    batches: int,
    k: int,
    fraction: float,
    weights: Sequence[float],
    rng: torch.Generator,
) -> tuple[float, float]:
    """(3): recall among all zeros, and among those of the strongest that are in the sample."""
    hits, lay, scale = 0, 0, sum(w * w for w in weights) ** 0.5
    for _ in range(PLAYS):
        truth = share * g + (share / batches).sqrt() * draw()
        best = torch.zeros(truth.numel(), dtype=torch.bool)
        best[_strongest(truth, k, rng)] = True
        at = distinct(truth.numel(), max(k, round(fraction * truth.numel())), rng)
        seen = (truth + scale * draw())[at]
        hits += int(best[at[_strongest(seen, k, rng)]].sum())
        lay += int(best[at].sum())
    return hits / (PLAYS * k), hits / max(lay, 1)


def _strongest(g: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Positions of the k largest |g|. If fewer than k are non-zero, the others are drawn at random."""
    best = top_k(g.abs(), k)
    best = best[g[best] != 0]
    if short := min(k, g.numel()) - best.numel():
        none = (g == 0).nonzero().flatten()
        best = torch.cat([best, none[distinct(none.numel(), short, rng)]])
    return best


def _weights(window: int, decay: float) -> list[float]:
    """Weight of each step of a window in its bias-corrected moving average."""
    raw = [decay ** (window - 1 - i) for i in range(window)]
    return [w / sum(raw) for w in raw]
