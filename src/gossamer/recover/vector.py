"""Sparse ReLU networks with several outputs, any loss, mini-batches: IHT on all weights together, refined between thresholds.

The two matrices of a network x -> W2 (W1 x)_+ form one vector, jointly s-sparse (arXiv 2509.20323, section on vector outputs):

    values on the support    ``every`` refinement steps (Adam) on mini-batches                                                (1)
    w <- H_k(z), z = w on the support, eta g off it                                                                           (2)
         g: the gradient of the loss over the last batches of ``window`` steps; eta = lr sqrt(every) / rms(g on the support), about
         how far a weight of typical gradient travels until the next threshold; at most ``swap`` k weights enter, a share that is
         cosine-annealed to 0; k falls cubically from ``inflate`` s to s                                                      (3)

What differs from the authors' code, and why: their step is a constant per problem and one step long; (1) refines, as their scalar version
does. They keep sums of updates in a count-sketch, and their streamed support compares new values with old ones: here the top k is exact,
from one stream over blocks of the gradient, O(k + block). A weight that enters starts at 0, so that (2) does not change the function.
Weights of a neuron are balanced before (2), |w1_j| = |w2_j| with the function unchanged, since a threshold across layers compares them. A
neuron that lost all its weights has no gradient, and never would again: each threshold gives ``scouts`` of them a random gate and output,
as in :mod:`.scalar`, and the best input of each by |g| enters with a small output weight.

State: s values and two moments each; nothing of the dense size but X. Cost of a threshold: one dense gradient of ``window`` batches.

Adam's steps have a length of their own. So X, and the targets of a squared loss, whose largest entry lies outside [1/4, 256) are taken in
units that bring it into [2, 4). The first and the last layer take the units back: a ReLU lets factors through.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._backend.dispatch import choose
from .._errors import UsageError, check_at_least, check_count, check_fraction
from ..layers import SparseLinear
from ..products.sense.op import STRONGEST, top_k
from ..support import Support
from ..surgery import set_support_
from .arrays import tensor
from .gates import generator, random_generators
from .networks import Layer, ReLUNetwork, classes_of, inputs
from .scalar import Fit
from .units import beyond, exponent, put_back, shifted, times

LOSSES = ("squared", "cross_entropy")
USUAL = range(-2, 8)  # powers of two below the largest entry of data that keep their units; 0 where all are zero


def fit_vector(
    X: Any,
    Y: Any,
    s: int,
    *,
    neurons: int = 64,
    loss: str = "squared",
    steps: int = 1000,
    batch: int | None = 128,
    lr: float = 0.01,
    every: int = 20,
    window: int = 4,
    inflate: float = 4.0,
    shrink: float = 0.7,
    swap: float = 0.3,
    scouts: int = 2,
    bias: bool = False,
    weight_decay: float = 0.0,
    seed: int = 0,
    on_step: Callable[[int, float], object] | None = None,
) -> Fit:
    """A two-layer ReLU network with at most s non-zero weights in both layers together.

    Args:
        X: inputs (n, d), float32 or float64.
        Y: targets (n,) or (n, k) for ``loss="squared"``, the mean over all entries; labels (n,) int64 for ``"cross_entropy"``.
        s: non-zeros; biases, with ``bias=True``, are dense and not counted.
        neurons: hidden neurons that may be used.
        steps: refinement steps; batch: samples of each, None is all; lr: Adam's, cosine-annealed to 0.
        every: steps between thresholds; window: batches whose gradient decides one.
        inflate, shrink: the support begins ``inflate`` times as large and has size s from the share ``shrink`` of the steps on, after which
            it stays.
        swap: share of the support that may be exchanged at the first threshold.
        scouts: neurons without weights that get another chance at each threshold.
        weight_decay: of Adam with decoupled weight decay.
        seed: of everything random.
        on_step: called with (step, loss of its batch).

    Raises: UsageError if shapes or counts do not fit, the data hold NaN or infinities, or labels are of one class only.
    """
    X, Y = _checked("fit_vector", X, Y, loss, s, [neurons])
    check_at_least("fit_vector", "inflate", inflate, 1.0)
    X, Y, units = _in_units(X, Y, loss)
    model = start(
        [X.shape[1], neurons, _outputs(Y, loss)], min(round(s * inflate), _total(X, Y, loss, neurons)), bias, X, seed
    )
    told = units.told(on_step)
    losses = train(
        model, X, Y, s, loss, steps, batch, lr, every, window, shrink, swap, scouts, weight_decay, seed, told
    )
    return units.fit(ReLUNetwork.from_sequential(model), losses, f"all {len(losses)} steps were made")


def fit_deep(
    X: Any,
    Y: Any,
    s: int,
    widths: Sequence[int],
    *,
    loss: str = "squared",
    seed: int = 0,
    polish: bool = True,
    **settings,
):
    """A deeper network, layer by layer: each hidden layer is learned as that of a two-layer network on the outputs of those before.

    Every layer but the last gets s / layers non-zeros, and its temporary output layer is discarded (the authors' scheme); the last stage
    gets what is left, both layers of it. ``polish`` then refines all values together on the supports found.

    Args:
        widths: of the hidden layers; the other arguments are those of :func:`fit_vector`.

    Returns: Fit; raises UsageError as :func:`fit_vector`.
    """
    if not widths:
        raise UsageError("fit_deep", "widths must name one hidden layer at least", got=list(widths))
    if "neurons" in settings:
        raise UsageError("fit_deep", "widths says how many neurons each layer has", got=settings["neurons"])
    X, Y = _checked("fit_deep", X, Y, loss, s, widths)
    X, Y, units = _in_units(X, Y, loss)
    settings["on_step"] = units.told(settings.get("on_step"))
    layers: list[Layer] = []
    shares, most = _shares(s, [X.shape[1], *widths, _outputs(Y, loss)])
    inside, left, losses = X, s, []
    for i, width in enumerate(widths):
        share = min(left, most) if i == len(widths) - 1 else shares[i]
        extra = (
            0 if i == len(widths) - 1 else max(1, min(share // 2, width * _outputs(Y, loss)))
        )  # for the temporary output layer
        fit = fit_vector(inside, Y, share + extra, neurons=width, loss=loss, seed=seed + i, **settings)
        losses += fit.losses
        if i < len(widths) - 1:
            hidden = _cut(fit.network.layers[0], share)
            layers.append(hidden)
            left -= hidden.support.n
            inside = hidden(inside).clamp_min(0)
        else:
            layers += fit.network.layers
    network = ReLUNetwork(tuple(layers))
    if polish:
        model = network.to_sequential()
        losses += train(
            model,
            X,
            Y,
            network.nonzeros,
            loss,
            every=10**9,
            scouts=0,
            window=1,
            swap=0.0,
            shrink=0.0,
            **_known(settings, seed),
        )
        network = ReLUNetwork.from_sequential(model)
    return units.fit(
        network,
        losses,
        f"{len(widths)} hidden layers, one after the other" + (", then refined together" if polish else ""),
    )


def _shares(s: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Non-zeros of each hidden layer but the last, s / layers where they fit, more where the last stage could not hold what is left; and
    how many the last stage holds."""
    room = [a * b for a, b in zip(sizes[:-3], sizes[1:-2], strict=True)]
    last = sizes[-3] * sizes[-2] + sizes[-2] * sizes[-1]
    shares = [min(s // (len(sizes) - 1), most) for most in room]
    for i, most in enumerate(room):
        shares[i] += max(0, min(s - sum(shares) - last, most - shares[i]))
    return shares, last


def start(widths: Sequence[int], n: int, bias: bool, like: Tensor, seed: int) -> nn.Sequential:
    """A random sparse network with n weights, shared among its layers by their widths (as ERK does), values as in SparseLayer."""
    rng = generator(seed, 1)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    shares = [rows + cols for rows, cols in shapes]
    modules: list[nn.Module] = []
    left = n
    for i, (rows, cols) in reversed(
        list(enumerate(shapes))
    ):  # the last layer is the smallest: what it cannot take goes to the others
        mine = (
            left if i == 0 else max(1, min(left - i, round(left * shares[i] / sum(shares[: i + 1]))))
        )  # one at least is left for each
        kept = min(rows * cols, mine)
        left -= kept
        s = Support.random((rows, cols), kept, rng=rng)
        modules = [
            SparseLinear(cols, rows, support=s, bias=bias, rng=rng, dtype=like.dtype, device=like.device),
            nn.ReLU(),
            *modules,
        ]
    return nn.Sequential(*modules[:-1])


def train(
    model: nn.Sequential,
    X: Tensor,
    Y: Tensor,
    s: int,
    loss: str = "squared",
    steps: int = 1000,
    batch: int | None = 128,
    lr: float = 0.01,
    every: int = 20,
    window: int = 4,
    shrink: float = 0.7,
    swap: float = 0.3,
    scouts: int = 2,
    weight_decay: float = 0.0,
    seed: int = 0,
    on_step: Callable[[int, float], object] | None = None,
) -> list[float]:
    """(1)-(3) on a model of SparseLinear and ReLU modules, in place; settings as in :func:`fit_vector`. Returns the loss of every step."""
    for name, value, least in (("steps", steps, 1), ("every", every, 1), ("window", window, 1), ("scouts", scouts, 0)):
        check_count("fit_vector", name, value, least)
    check_fraction("fit_vector", "shrink", shrink)
    if batch is not None:
        check_count("fit_vector", "batch", batch, 1)
    layers = [m for m in model if isinstance(m, SparseLinear)]
    first = sum(layer.support.n for layer in layers)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
    loss_of = F.cross_entropy if loss == "cross_entropy" else F.mse_loss
    rng, losses, settled, thresholds = generator(seed, 2), [], max(1, round(shrink * steps)), 0
    operands: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    for t in range(1, steps + 1):
        event = t <= settled and (t == settled or t % every == 0)
        upcoming = min(settled, -(-t // every) * every)
        for group in opt.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * (t - 1) / steps))
        where = (
            slice(None)
            if batch is None or batch >= len(X)
            else torch.randint(len(X), (batch,), generator=rng).to(X.device)
        )
        with ExitStack() as stack:
            for layer, heard in zip(layers, operands, strict=True):
                if t <= settled and upcoming - t < window:
                    stack.enter_context(layer.observe(partial(_keep, heard)))
            value = loss_of(model(X[where]), Y[where])
            value.backward()
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise UsageError(
                "fit_vector", f"the loss is {losses[-1]} at step {t}", remedy="a smaller lr, or inputs of unit scale"
            )
        rms = _rms([layer.values.grad for layer in layers if layer.values.grad is not None])
        opt.step()
        opt.zero_grad(set_to_none=True)
        if event:
            k = max(s, round(s + (first - s) * max(0.0, 1 - t / settled) ** 3))
            eta = opt.param_groups[0]["lr"] * math.sqrt(every) / max(rms, 1e-30)
            most = round(swap * k * 0.5 * (1 + math.cos(math.pi * t / settled)))
            threshold(
                layers, operands, min(k, first), eta, most, opt, scouts if t < settled else 0, seed, thresholds, X[:1]
            )
            operands, thresholds = [[] for _ in layers], thresholds + 1
        if on_step is not None:
            on_step(t, losses[-1])
    return losses


@torch.no_grad()
def threshold(
    layers: Sequence[SparseLinear],
    operands: list[list[tuple[Tensor, Tensor]]],
    k: int,
    eta: float,
    most: int,
    opt: torch.optim.Optimizer,
    scouts: int,
    seed: int,
    t: int,
    like: Tensor,
) -> None:
    """(2): the k largest of |w| on the supports and eta |g| off them, over all layers, at most ``most`` of the latter; supports and
    optimizer states follow."""
    for before, after in zip(layers[:-1], layers[1:], strict=True):
        balance_(before, after)
    born = (
        _scouted(layers[-2], layers[-1], operands[-2], operands[-1], scouts, seed, t, like)
        if scouts and len(layers) > 1
        else []
    )
    ids, scores, owner, new_ = [], [], [], []
    born = born[: max(0, (k - len(layers)) // 2)]
    room = k - 2 * len(born)
    for i, (layer, heard) in enumerate(zip(layers, operands, strict=True)):
        s = layer.support
        sensed = heard and most and s.n < s.total
        off, g = choose(STRONGEST, heard, s, most, None).run(heard, s, most, None) if sensed else (s.ids()[:0], None)
        ids.append(torch.cat([s.ids(), off]))
        scores.append(layer.values.abs() if g is None else torch.cat([layer.values.abs(), eta / len(heard) * g.abs()]))
        owner.append(torch.full((ids[-1].numel(),), i, device=ids[-1].device))
        new_.append(torch.arange(ids[-1].numel(), device=ids[-1].device) >= s.n)
    everything, scored, entering = torch.cat(owner), torch.cat(scores), torch.cat(new_)
    allowed = torch.where(entering, scored, -1.0)
    refused = entering.clone()
    refused[top_k(allowed, min(most, int(entering.sum())))] = False
    for i in range(len(layers)):  # a layer keeps one weight at least
        scored[top_k(torch.where((everything == i) & ~entering, scored, -1.0), 1)] = math.inf
    kept = top_k(torch.where(refused, -1.0, scored), min(room, int((~refused).sum())))
    for i, (layer, mine) in enumerate(zip(layers, ids, strict=True)):
        start = int((everything < i).sum())
        chosen = kept[everything[kept] == i] - start
        new = mine[chosen]
        extra = [unit[i - len(layers) + 2] for unit in born] if i >= len(layers) - 2 else []
        new = torch.cat([new, torch.tensor(extra, dtype=torch.int64, device=new.device)]).unique()
        s = Support.from_ids(new, layer.support.shape)
        if not s.same(layer.support):
            set_support_(layer, s, opt)
        if extra and i == len(layers) - 1:
            at = s.find(torch.tensor(extra, dtype=torch.int64, device=new.device))
            size = float(layer.values.abs().mean())
            layer.values[at] = torch.where(layer.values[at] == 0, size, layer.values[at])


@torch.no_grad()
def balance_(before: SparseLinear, after: SparseLinear) -> None:
    """Scales each neuron's incoming weights (and bias) by c and its outgoing ones by 1 / c, so that both have one norm."""
    a, b = before.support, after.support
    inside = torch.zeros(a.shape[0], dtype=before.values.dtype, device=before.values.device)
    outside = torch.zeros_like(inside)
    inside.index_add_(0, a.rows().long(), before.values.square())
    outside.index_add_(0, b.col.long(), after.values.square())
    c = (outside / inside).pow(0.25).clamp(0.25, 4.0)
    c = torch.where((inside > 0) & (outside > 0), c, 1.0)
    before.values.mul_(c[a.rows().long()])
    if before.bias is not None:
        before.bias.mul_(c)
    after.values.div_(c[b.col.long()])


def _scouted(
    hidden: SparseLinear,
    out: SparseLinear,
    below: list[tuple[Tensor, Tensor]],
    above: list[tuple[Tensor, Tensor]],
    scouts: int,
    seed: int,
    t: int,
    like: Tensor,
) -> list[tuple[int, int]]:
    """For some neurons without weights: the input and the output weight that enter, as ids."""
    p, d = hidden.support.shape
    dead = ((hidden.support.crow.diff() == 0) & (out.support.ccol.diff() == 0)).nonzero().flatten()
    if not dead.numel() or not below or not above:
        return []
    dead = dead[torch.randperm(dead.numel(), generator=generator(seed, 3, t))[:scouts].to(dead.device)]
    h = random_generators(seed + 1 + t, range(p), d)[dead.cpu()].to(like)
    g = torch.zeros(len(dead), out.support.shape[0], d, dtype=like.dtype, device=like.device)
    for (_, x), (dy, _) in zip(below, above, strict=True):
        gates = (x @ h.T > 0).to(x.dtype)  # (b, scouts)
        g += torch.einsum("bs,bo,bd->sod", gates, dy, x)
    best = g.abs().flatten(1).argmax(1)
    return [(int(j) * d + int(at) % d, int(at) // d * p + int(j)) for j, at in zip(dead, best, strict=True)]


def _keep(heard: list[tuple[Tensor, Tensor]], dy: Tensor, x: Tensor) -> None:
    heard.append((dy, x))


def _rms(gradients: list[Tensor]) -> float:
    total = sum(g.numel() for g in gradients)
    return math.sqrt(sum(float(g.square().sum()) for g in gradients) / max(total, 1))


def _checked(who: str, X: Any, Y: Any, loss: str, s: int, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    if loss not in LOSSES:
        raise UsageError(who, f"unknown loss {loss!r}", remedy=f"one of {', '.join(LOSSES)}")
    if loss == "cross_entropy":
        Y = tensor(who, "Y", Y)
        X, _ = inputs(who, X, Y)
        classes_of(who, Y)
        Y = Y.long()
    else:
        X, Y = inputs(who, X, Y)
    for width in widths:
        check_count(who, "neurons", width, 1)
    layers = len(widths) + 1
    check_count(who, "s", s, layers)
    sizes = [X.shape[1], *widths, _outputs(Y, loss)]
    if s > (total := sum(a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))):
        raise UsageError(
            who,
            f"the network has {total} weights, fewer than the {s} non-zeros asked for",
            remedy="more neurons, or a smaller s",
        )
    return X, Y


class _Units(NamedTuple):
    """2^-a X and 2^-b Y are what is trained on; losses are 4^b times those."""

    a: int
    b: int

    def told(self, on_step: Callable[[int, float], object] | None) -> Callable[[int, float], object] | None:
        """``on_step``, told the losses of Y as it came."""
        return None if on_step is None else lambda t, loss: on_step(t, times(loss, 2 * self.b))

    def fit(self, network: ReLUNetwork, losses: list[float], reason: str) -> Fit:
        """The network on X as it came, if its precision can hold it; else one without weights, and a sentence."""
        first, *between, last = network.layers
        moved = put_back(first.values, -self.a), put_back(last.values, self.b)
        bias = None if last.bias is None else put_back(last.bias, self.b)
        losses = [times(loss, 2 * self.b) for loss in losses]
        if moved[0] is None or moved[1] is None or (last.bias is not None and bias is None):
            nothing = ReLUNetwork(tuple(_cut(layer, 0) for layer in network.layers))
            return Fit(nothing, losses, False, beyond("the network", first.values, -self.a))
        layers = (first._replace(values=moved[0]), *between, last._replace(values=moved[1], bias=bias))
        return Fit(ReLUNetwork(layers), losses, True, reason)


def _in_units(X: Tensor, Y: Tensor, loss: str) -> tuple[Tensor, Tensor, _Units]:
    a, b = (0 if e in USUAL else e - 1 for e in (exponent(X), exponent(Y) if loss == "squared" else 0))
    return shifted(X, -a), shifted(Y, -b) if b else Y, _Units(a, b)


def _outputs(Y: Tensor, loss: str) -> int:
    return int(Y.max()) + 1 if loss == "cross_entropy" else Y.shape[1] if Y.dim() > 1 else 1


def _total(X: Tensor, Y: Tensor, loss: str, neurons: int) -> int:
    return neurons * (X.shape[1] + _outputs(Y, loss))


def _cut(layer: Layer, n: int) -> Layer:
    keep = top_k(layer.values.abs(), n)
    return Layer(Support.from_ids(layer.support.ids()[keep], layer.support.shape), layer.values[keep], layer.bias)


def _known(settings: dict, seed: int) -> dict:
    return {
        "seed": seed,
        **{name: settings[name] for name in ("steps", "batch", "lr", "weight_decay", "on_step") if name in settings},
    }
