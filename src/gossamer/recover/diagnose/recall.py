"""A layer that grows by sensed gradients is a measurement too: of all gradients off its support, by one batch, at a share of the places.

    noise         per zero c and sample b, g_bc = dy_bi x_bj: the batch gradient S_c = sum_b g_bc has the variance
                  v_c = B / (B - 1) (sum_b g_bc^2 - S_c^2 / B), from a second sampled product, of squares                    (1)
    signal        empirical Bayes: among zeros of like noise, true gradients over their noise are a mixture of centred normal laws of
                  given scales, its weights by EM (Stephens 2017, Biostatistics 18(2)); drawn from the posterior               (2)
    recall        sensing is then played out: a share of the places, an average of noisy batches, the k strongest; how many of the
                  truly strongest k of *all* zeros are among them. Noise is drawn by the bootstrap over samples, so that places move
                  together as they do: a batch that doubles a whole row changes no rank within it                              (3)
    conditioning  sqrt(beta / alpha) of the columns of the input on an output row's support, at unit norm: how far weights of the same
                  row can mask each other on this batch; infinite where a row has more weights than the batch has samples

:func:`measured_recall` does (3) with the gradient of all data in place of (2). :class:`Watch` diagnoses every event of a training.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._backend.dispatch import run
from ..._errors import UsageError, check_count, check_fraction
from ...layers import SparseLayer
from ...observe import Operands as Kept
from ...observe import Tap, version_of
from ...products.conv2d import reference as conv2d
from ...products.conv2d.reference import Geometry
from ...products.sense.op import SAMPLED, top_k
from ...support import Support, distinct
from ..arrays import tensor
from ..units import exponent, shifted

CALIBRATION = 1 << 19  # zeros whose noise is measured at most
BINS, LIKE, LEARNT, EM = (
    8,
    500,
    5000,
    30,
)  # groups of like noise, zeros in each at least; zeros that EM learns from, its rounds
POWERS = torch.cat(
    [torch.zeros(1), 2.0 ** torch.arange(-4, 12)]
).double()  # signal over noise power of the components in (2)
PLAYS = 8  # of (3)
NEAR = 16  # binary orders of magnitude within which operands keep their units
ROWS = 32  # output rows whose conditioning is looked at
Operands = Sequence[tuple[Any, Any]]  # (dy, x) of each batch, tensors or arrays


class Diagnosis(NamedTuple):
    """What sensing of one layer is worth. ``recall``: expected share of the truly strongest ``n_grow`` gradients, of all zeros, among those
    chosen; ``of_sensed``: of those that lay in the sample; ``chance``: what a random choice has; ``measured``: by the gradient of all data.
    ``conditioning``, ``alpha``, ``beta``: of the input on the support of an output row (median over rows, unit columns); ``snr``: signal
    over noise power of one batch's gradient, NaN where there is neither. All are NaN if the operands hold NaN or infinities."""

    name: str
    batch: int
    window: int
    zeros: int
    fraction: float
    n_grow: int
    recall: float
    of_sensed: float
    chance: float
    snr: float
    conditioning: float
    alpha: float
    beta: float
    measured: float | None

    @property
    def sentence(self) -> str:
        """One plain sentence."""
        over = "" if self.window == 1 else f" over {self.window} steps"
        found = f"recall {self.recall:.2f}" + ("" if self.measured is None else f" (measured {self.measured:.2f})")
        head = f"batch {self.batch}{over} senses {100 * self.fraction:.3g} % of {self.zeros:,} zeros: {found}"
        return f"{head}, conditioning {self.conditioning:.1f}; {self._verdict()}"

    def _verdict(self) -> str:
        if math.isnan(self.recall):
            return "the operands hold NaN or infinities, and nothing can be told"
        if self.zeros == 0 or self.n_grow == 0:
            return "nothing grows here"
        if self.fraction == 0:
            return "nothing is sensed, and what grows is random"
        if math.isnan(self.snr):
            return "there is no gradient at the zeros, and what grows is random"
        if self.chance >= 1:
            return "all zeros grow, and there is nothing to choose"
        luck = (
            self.chance / self.fraction
        )  # what a random choice among the sensed has of those of the strongest that lie there
        if luck >= 1:
            return "all that is sensed grows, and it was chosen at random; raise the fraction"
        ranked = (self.of_sensed - luck) / (1 - luck)
        if (self.recall - self.chance) / (1 - self.chance) < min(2 * self.chance, 0.2) or ranked < 0.2:
            return "growth will be near random; raise the batch or the window" + (
                ", then the fraction" if self.fraction < 0.5 else ""
            )
        if ranked < 0.5:
            return "noise decides half of the growth; a larger batch or window would help"
        if self.fraction < 0.5:
            return "what is sensed is ranked well; a larger fraction, or more events, would find more"
        return "growth follows the gradient"

    def record(self) -> dict[str, Any]:
        """For a line of JSON; infinities become null."""
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in self._asdict().items()}
        return {**plain, "sentence": self.sentence}


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
    """Diagnoses the sensing of one layer from its operands at the present weights.

    Args:
        operands: (dy, x) of one batch or several, as the layer's hook hears them: output gradients (B, out), inputs (B, in), or images with
            ``geometry``. dy is that of a loss averaged over its batch.
        s: the layer's support, single weights.
        n_grow: how many blocks will be grown.
        fraction, window, decay: share of the zeros sensed, steps averaged, factor of the moving average, as in ``csst``.
        measured: what :func:`measured_recall` says, to stand in the sentence.
        rng: of samples and noise; None is a fixed seed.

    Without any gradient at the zeros recall is that of chance, and the sentence says so.

    Raises: UsageError for tiles, no operands, operands of one sample only or with NaN or infinities, or settings out of their range.
    """
    who = "diagnose.sensing"
    operands, n_grow, window = _checked(who, operands, s, n_grow, 0, fraction, window, decay)
    if min(dy.shape[0] for dy, _ in operands) < 2:
        raise UsageError(who, "noise cannot be told from signal on a batch of one sample")
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    zeros, batch = s.total - s.n, operands[0][0].shape[0]
    alpha, beta = support_conditioning(operands, s, geometry, rng)
    cond = math.sqrt(beta / alpha) if alpha > 1e-12 else math.inf
    chance = min(n_grow, zeros) / max(zeros, 1)
    if not zeros or not n_grow or not fraction:
        return Diagnosis(
            name, batch, window, zeros, fraction, n_grow, chance, 0.0, chance, 0.0, cond, alpha, beta, measured
        )
    n_grow = max(1, min(n_grow, round(fraction * zeros)))
    ids = s.sample_outside(min(zeros, CALIBRATION), rng)
    g, v = gradient_and_noise(operands, s, ids, geometry)
    if not bool(g.any()) and not bool(v.any()):
        chance, luck = n_grow / zeros, min(1.0, n_grow / (fraction * zeros))
        return Diagnosis(
            name, batch, window, zeros, fraction, n_grow, chance, luck, chance, math.nan, cond, alpha, beta, measured
        )
    share, snr = _signal(g, v, len(operands), rng)
    draw, k = partial(_noise, operands, s, ids, geometry, rng), max(1, round(n_grow * ids.numel() / zeros))
    recall, within = _played(g, share, draw, len(operands), k, fraction, window, decay, rng)
    return Diagnosis(
        name, batch, window, zeros, fraction, n_grow, recall, within, n_grow / zeros, snr, cond, alpha, beta, measured
    )


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
    """Recall (3) with the mean gradient of all ``batches`` (dy, x) as the truth: each trial senses some zeros on ``window`` of them.

    The gradient of all zeros is made, a vector of their number; batches of one size, of a loss averaged over each.

    Raises: UsageError as :func:`sensing`, and if nothing grows or is sensed, or the window has more steps than there are batches.
    """
    who = "diagnose.measured_recall"
    batches, n_grow, window = _checked(who, batches, s, n_grow, 1, fraction, window, decay)
    check_count(who, "trials", trials, 1)
    if window > len(batches):
        raise UsageError(who, f"a window of {window} steps needs as many batches", got=len(batches))
    if round(fraction * (s.total - s.n)) < 1:
        raise UsageError(
            who,
            f"a share of {fraction} of {s.total - s.n} zeros is less than one, and nothing is sensed",
            remedy="a larger fraction",
        )
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    everything = s.outside(torch.arange(s.total - s.n, device=s.col.device))
    truth: Tensor | float = 0.0
    for dy, x in batches:
        truth = truth + run(SAMPLED, dy, x, everything, s.shape, s.block, geometry).cpu()
    assert isinstance(truth, Tensor)
    n_grow = min(n_grow, round(fraction * truth.numel()))
    best = torch.zeros(truth.numel(), dtype=torch.bool)
    best[_strongest(truth, n_grow, rng)] = True
    weights, hits = _weights(window, decay), 0
    for _ in range(trials):
        at = distinct(truth.numel(), round(fraction * truth.numel()), rng)
        mean: Tensor | float = 0.0
        for weight, b in zip(weights, torch.randperm(len(batches), generator=rng)[:window].tolist(), strict=True):
            mean = mean + weight * run(SAMPLED, *batches[b], everything[at], s.shape, s.block, geometry).cpu()
        assert isinstance(mean, Tensor)
        hits += int(best[at[_strongest(mean, n_grow, rng)]].sum())
    return hits / (trials * n_grow)


def gradient_and_noise(
    operands: Operands, s: Support, ids: Tensor, geometry: Geometry | None = None
) -> tuple[Tensor, Tensor]:
    """Mean over the batches of the gradient at some zeros, and the variance of one batch's gradient there by (1); (m,) float64 each."""
    operands, a, b = _in_units(_tensors("diagnose.gradient_and_noise", operands))
    total, squares = torch.zeros(ids.numel(), dtype=torch.float64), torch.zeros(ids.numel(), dtype=torch.float64)
    for dy, x in operands:
        B = dy.shape[0]
        if geometry is None:
            dy, x = dy.reshape(-1, s.shape[0]), x.reshape(-1, s.shape[1])
            g = run(SAMPLED, dy, x, ids, s.shape, s.block, None).double().cpu()
            q = run(SAMPLED, dy.square(), x.square(), ids, s.shape, s.block, None).double().cpu()
        else:  # the gradient of one image sums over its pixels: squares come after the sum
            parts = [
                run(SAMPLED, dy[b : b + 1], x[b : b + 1], ids, s.shape, s.block, geometry).double().cpu()
                for b in range(B)
            ]
            g, q = torch.stack(parts).sum(0), torch.stack(parts).square().sum(0)
        total += g
        squares += B / (B - 1) * (q - g.square() / B)
    return shifted(total / len(operands), a + b), shifted((squares / len(operands)).clamp_min(0), 2 * (a + b))


def support_conditioning(
    operands: Operands, s: Support, geometry: Geometry | None, rng: torch.Generator
) -> tuple[float, float]:
    """Median over output rows of the extreme eigenvalues of the Gram matrix of the row's inputs, columns at unit norm."""
    x = tensor("diagnose.support_conditioning", "x", operands[0][1])
    full = (
        torch.cat([columns for _, columns in conv2d.unfolded(x, geometry)])
        if geometry is not None
        else x.reshape(-1, s.shape[1])
    )
    fan_in = s.crow.diff()
    rows = (fan_in > 0).nonzero().flatten()
    rows = rows[torch.randperm(rows.numel(), generator=rng)[:ROWS]]
    edges = []
    for i in rows.tolist():
        a = full[:, s.col[int(s.crow[i]) : int(s.crow[i + 1])].long()].double()
        norms = a.norm(dim=0)
        a = a[:, norms > 0] / norms[norms > 0]
        if a.shape[1]:
            values = torch.linalg.eigvalsh(a.T @ a)
            edges.append((max(float(values[0]), 0.0) if a.shape[1] <= a.shape[0] else 0.0, float(values[-1])))
    if not edges:
        return 1.0, 1.0
    low, high = torch.tensor(edges, dtype=torch.float64).median(0).values.tolist()
    return low, high


def _signal(g: Tensor, v: Tensor, batches: int, rng: torch.Generator) -> tuple[Tensor, float]:
    """(2): for each zero, how much of its measured mean is signal by a draw from the posterior, in [0, 1]; and the overall ratio of signal
    to noise power of one batch."""
    noise, share = v / batches, torch.ones_like(g)
    order = torch.argsort(v)
    order = order[v[order] > 0]
    for part in order.chunk(max(1, min(BINS, order.numel() // LIKE))):
        if not part.numel():
            continue
        likelihood = _likelihood(g[part] / noise[part].sqrt())
        some = likelihood[:: max(1, part.numel() // LEARNT)]
        weights = torch.full_like(POWERS, 1 / len(POWERS))
        for _ in range(EM):
            posterior = some * weights
            weights = (posterior / posterior.sum(1, keepdim=True)).mean(0)
        which = torch.multinomial(likelihood * weights + 1e-300, 1, generator=rng)[:, 0]
        share[part] = (POWERS / (1 + POWERS))[which]
    signal = max(0.0, float((g.square() - noise).mean()))
    return share, signal / max(float(v.mean()), 1e-300)


def _likelihood(z: Tensor) -> Tensor:
    """Of means in units of their noise, under each component, (m, components)."""
    exponent = -0.5 * z[:, None].square() / (1 + POWERS) - 0.5 * (1 + POWERS).log()
    return (exponent - exponent.max(1, keepdim=True).values).exp()


def _noise(operands: Operands, s: Support, ids: Tensor, geometry: Geometry | None, rng: torch.Generator) -> Tensor:
    """One draw of the noise of a batch at all these places together, by the bootstrap: samples drawn again, less what they were."""
    dy, x = operands[int(torch.randint(len(operands), (), generator=rng))]
    B = dy.shape[0]
    again = torch.bincount(torch.randint(B, (B,), generator=rng), minlength=B) - 1
    drawn = dy * again.to(dy).view(-1, *(1,) * (dy.dim() - 1))
    return (B / (B - 1)) ** 0.5 * run(SAMPLED, drawn, x, ids, s.shape, s.block, geometry).double().cpu()


def _played(
    g: Tensor,
    share: Tensor,
    draw: Callable[[], Tensor],
    batches: int,
    k: int,
    fraction: float,
    window: int,
    decay: float,
    rng: torch.Generator,
) -> tuple[float, float]:
    """(3): recall among all, and among those of the strongest that lay in the sample."""
    hits, lay, scale = 0, 0, sum(w * w for w in _weights(window, decay)) ** 0.5
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
    """Where the k largest |g| are; where fewer are not zero, the others by chance, as no gradient tells them apart."""
    best = top_k(g.abs(), k)
    best = best[g[best] != 0]
    if short := min(k, g.numel()) - best.numel():
        none = (g == 0).nonzero().flatten()
        best = torch.cat([best, none[distinct(none.numel(), short, rng)]])
    return best


def _checked(
    who: str, operands: Operands, s: Support, n_grow: int, least: int, fraction: float, window: int, decay: float
) -> tuple[Operands, int, int]:
    """The operands in units of their own, and whole numbers."""
    if s.block != (1, 1):
        raise UsageError(who, "knows supports of single weights only", got=s.block)
    if not len(operands):
        raise UsageError(who, "needs the operands (dy, x) of one batch at least")
    check_count(who, "n_grow", n_grow, least)
    check_fraction(who, "fraction", fraction)
    check_count(who, "window", window, 1)
    check_fraction(who, "decay", decay)
    operands = _tensors(who, operands)
    if (broken := _not_finite(operands)) is not None:
        raise UsageError(who, broken, remedy="leave out steps whose loss overflowed")
    return _in_units(operands)[0], int(n_grow), int(window)


def _tensors(who: str, operands: Operands) -> Operands:
    return [
        (tensor(who, f"dy of batch {b}", dy), tensor(who, f"x of batch {b}", x)) for b, (dy, x) in enumerate(operands)
    ]


def _in_units(operands: Operands) -> tuple[Operands, int, int]:
    """2^-a dy and 2^-b x of all batches, with a and b: products of squares neither overflow nor vanish. What is no further than 2^``NEAR``
    from one stays as it is."""
    largest = [max((exponent(pair[i]) for pair in operands if bool(pair[i].any())), default=0) for i in range(2)]
    a, b = (e if abs(e) > NEAR else 0 for e in largest)
    return [(shifted(dy, -a), shifted(x, -b)) for dy, x in operands], a, b


def _not_finite(operands: Operands) -> str | None:
    """The sentence on the first operand that holds NaN or infinities, or None."""
    for b, pair in enumerate(operands):
        for name, values in zip(("dy", "x"), pair, strict=True):
            if bad := int((~values.isfinite()).sum()):
                return f"{name} of batch {b} holds {bad} entries that are NaN or infinite"
    return None


def _weights(window: int, decay: float) -> list[float]:
    """Of each step of a window in its bias-corrected moving average."""
    raw = [decay ** (window - 1 - i) for i in range(window)]
    return [w / sum(raw) for w in raw]


class Watch:
    """Diagnoses every event of a training: pass it to ``fit(on_step=...)``, or call it after each ``rewirer.step()``.

    Listens to the layers on event steps only, and keeps their operands of that step until it is called. Where these hold NaN or infinities,
    as in a step that a loss scaler skips, the diagnosis is NaN and its sentence says why.

    Args:
        rewirer: a :class:`gossamer.Rewirer`.
        path: a file to which a line of JSON per event and layer is added.
        tell: called with each :class:`Diagnosis`, e.g. ``lambda d: print(d.sentence)``.
    """

    def __init__(self, rewirer: Any, path: str | Path | None = None, tell: Callable[[Diagnosis], object] | None = None):
        self.rewirer, self.path, self.tell = rewirer, None if path is None else Path(path), tell
        self.last: dict[str, Diagnosis] = {}
        self._heard: dict[str, tuple[list[Kept], Support, int]] = {}
        self._handles = [
            layer.register_forward_hook(partial(self._listen, name)) for name, layer in rewirer.layers.items()
        ]

    def close(self) -> None:
        """Listens no more."""
        for handle in self._handles:
            handle.remove()

    def _listen(self, name: str, layer: SparseLayer, args: tuple[Tensor, ...], y: Tensor) -> None:
        if not y.requires_grad or layer.block != (1, 1) or not self.rewirer.is_event(self.rewirer.t + 1):
            return
        heard = self._heard.setdefault(name, ([], layer.support, self.rewirer.sensing.get(name, 0)))[0]
        dtype = layer.values.dtype
        x = args[0].detach().to(dtype)
        seen = version_of(x)

        def keep(dy: Tensor) -> None:
            dy = dy.detach().to(dtype)
            heard.append(Kept(dy, x, (version_of(dy), seen)))

        y.register_hook(keep)

    def __call__(self, *_: object) -> dict[str, Diagnosis]:
        """The diagnoses of the event of the step just made, by layer; {} if it had none."""
        event, self.last = self.rewirer.last, {}
        if event is not None:
            sense = self.rewirer.sense
            window = next((w for w in range(1, 1000) if (asked := sense(event.t - w + 1)) is None or asked.fresh), 1)
            asked = sense(event.t)
            for name, (kept, s, sensed) in self._heard.items():
                operands = [pair.checked(name) for pair in kept]
                if not operands or min(dy.shape[0] for dy, _ in operands) < 2:
                    continue
                grow, zeros = event.grown.get(name, 0), s.total - s.n
                fraction = min(1.0, sensed / max(1, zeros))
                if _not_finite(operands) is not None:
                    batch, no = operands[0][0].shape[0], math.nan
                    self.last[name] = Diagnosis(
                        name, batch, window, zeros, fraction, grow, no, no, no, no, no, no, no, None
                    )
                    continue
                self.last[name] = sensing(
                    operands,
                    s,
                    n_grow=grow,
                    fraction=fraction,
                    window=window,
                    decay=0.0 if asked is None else asked.decay,
                    geometry=self.rewirer.layers[name].geometry,
                    name=name,
                )
        self._heard = {}
        for d in self.last.values():
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"step": self.rewirer.t, **d.record()}) + "\n")
            if self.tell is not None:
                self.tell(d)
        return self.last


def record_operands(
    layers: dict[str, SparseLayer], passes: Iterable[Callable[[], object]]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Operands (dy, x) of every layer in each of several backward passes; ``passes`` call ``loss(...).backward()``."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(Tap(layer, lambda dy, x, name=name: found[name].append((dy, x))))
        for backward in passes:
            backward()
    return found
