# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""Sparse ReLU networks with several outputs, any loss, mini-batches: IHT on all weights together.

The two matrices of a network x -> W2 (W1 x)_+ form one vector, jointly s-sparse (arXiv 2509.20323, vector outputs):

    values on the supports    ``every`` steps of Adam on mini-batches                                              (1)
    supports                  a threshold of all weights together, as a topology: (2) and (3) of projection.py

The training is :func:`gossamer.fit` with a :class:`gossamer.Rewirer`. The differences from the authors' code:

    step         Theirs makes one step, of a constant size for each problem. (1) makes several, as in their scalar
                 version.
    threshold    Theirs keeps sums of updates in a count-sketch, and its streamed support compares new values with
                 old ones. Here the top k is exact, from one stream over blocks of the gradient, O(k + block).

State: s values with two moments each. Only X has the dense size.

The length of Adam's steps does not depend on the data. X, and the targets of a squared loss, are therefore multiplied
by a power of two that brings their largest entry into [2, 4), unless it is in [1/4, 256). The first and the last layer
undo these factors, which works because a ReLU commutes with positive factors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._errors import UsageError, check_at_least, check_choice, check_count, check_fraction
from ...layers import SparseLinear
from ...support import Support
from ...training.events import Diverged
from ...training.loop import Step, fit
from ...training.rewirer import Rewirer
from ..arrays import Array, tensor
from ..gates import generator
from ..units import beyond, exponent, put_back, shifted, times
from .data import classes_of, inputs
from .projection import Projection, Thresholds
from .relu import Fit, ReLUNetwork, largest

Watch = Callable[[int, float], object]  # called with the step and its loss

LOSSES = {"squared": F.mse_loss, "cross_entropy": F.cross_entropy}
USUAL = range(-2, 8)  # data whose largest entry has such an exponent are not scaled


@dataclass(frozen=True)
class Training:
    """Settings of (1)-(3) with their defaults, see :func:`fit_vector`. Raises UsageError if one is out of range."""

    loss: str = "squared"
    steps: int = 1000
    batch: int | None = 128
    lr: float = 0.01
    every: int = 20
    window: int = 4
    shrink: float = 0.7
    swap: float = 0.3
    scouts: int = 2
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("every", 1), ("window", 1), ("scouts", 0)):
            check_count("fit_vector", name, getattr(self, name), least)
        check_fraction("fit_vector", "shrink", self.shrink)
        if self.batch is not None:
            check_count("fit_vector", "batch", self.batch, 1)


def fit_vector(
    X: Array,
    Y: Array,
    s: int,
    *,
    neurons: int = 64,
    loss: str = Training.loss,
    steps: int = Training.steps,
    batch: int | None = Training.batch,
    lr: float = Training.lr,
    every: int = Training.every,
    window: int = Training.window,
    inflate: float = 4.0,
    shrink: float = Training.shrink,
    swap: float = Training.swap,
    scouts: int = Training.scouts,
    bias: bool = False,
    weight_decay: float = Training.weight_decay,
    seed: int = Training.seed,
    on_step: Watch | None = None,
) -> Fit:
    """Fits a two-layer ReLU network with at most s non-zero weights in both layers together.

    Args:
        X: inputs (n, d), float32 or float64.
        Y: targets (n,) or (n, k) for ``loss="squared"``; labels (n,) int64 for ``"cross_entropy"``.
        s: largest number of non-zeros, without biases.
        neurons: largest number of hidden neurons.
        loss: ``"squared"`` (the mean over all entries) or ``"cross_entropy"``.
        steps: steps of Adam.
        batch: samples per step; None is all.
        lr: step size of Adam, cosine-annealed to 0.
        every: steps between thresholds.
        window: number of batches for the gradient of a threshold.
        inflate: initial size of the support over its final size.
        shrink: fraction of the steps after which the support is final and has size s.
        swap: fraction of the support that may be exchanged at the first threshold.
        scouts: number of neurons without weights that get a random gate at each threshold.
        bias: give both layers dense biases.
        weight_decay: decoupled weight decay of Adam.
        seed: seed of all random choices.
        on_step: called with (step, loss of its batch).

    Raises: UsageError if shapes or counts do not fit, the data hold NaN or infinities, or there is only one class.
    """
    who = "fit_vector"
    training = Training(loss, steps, batch, lr, every, window, shrink, swap, scouts, weight_decay, seed)
    x, y = checked(who, X, Y, loss, s, [neurons])
    check_at_least(who, "inflate", inflate, 1.0)
    x, y, units = in_units(x, y, loss)
    sizes = [x.shape[1], neurons, outputs(y, loss)]
    model = start(sizes, min(round(s * inflate), neurons * (sizes[0] + sizes[2])), bias, x, seed)
    losses = train(model, x, y, s, training, units.told(on_step))
    return units.fit(ReLUNetwork.from_sequential(model), losses, f"all {len(losses)} steps were made")


def start(widths: Sequence[int], n: int, bias: bool, like: Tensor, seed: int) -> nn.Sequential:
    """A random sparse network with n weights. The layers share them by their widths, as in ERK."""
    rng = generator(seed, 1)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    shares = [rows + cols for rows, cols in shapes]
    modules: list[nn.Module] = []
    left = n
    for i, (rows, cols) in reversed(list(enumerate(shapes))):
        # the last layer is the smallest: the other layers get the weights that it cannot hold, each at least one
        mine = left if i == 0 else max(1, min(left - i, round(left * shares[i] / sum(shares[: i + 1]))))
        kept = min(rows * cols, mine)
        left -= kept
        s = Support.random((rows, cols), kept, rng=rng)
        layer = SparseLinear(cols, rows, support=s, bias=bias, rng=rng, dtype=like.dtype, device=like.device)
        modules = [layer, nn.ReLU(), *modules]
    return nn.Sequential(*modules[:-1])


def train(
    model: nn.Sequential, X: Tensor, Y: Tensor, s: int, training: Training, on_step: Watch | None = None
) -> list[float]:
    """Runs (1)-(3) on a model of SparseLinear and ReLU modules, in place. Returns the loss of every step.

    Raises: UsageError if the loss is not finite.
    """
    layers = [m for m in model if isinstance(m, SparseLinear)]
    stop, first = max(1, round(training.shrink * training.steps)), sum(layer.support.n for layer in layers)
    thresholds = Thresholds(stop, training.every, first, s, training.swap)
    projection = Projection(layers, thresholds, training.window, training.scouts, training.seed)
    topology, losses = projection.topology, list[float]()
    opt = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay, betas=(0.9, 0.99))
    rewirer = Rewirer(model, opt, topology, rng=generator(training.seed, 4), newborn="zero")

    def balance(*_: object) -> None:
        if topology.when(rewirer.t + 1) is not None:
            projection.balance_()

    def told(step: Step) -> None:
        losses.append(step.loss)
        projection.start_scouts_()
        if on_step is not None:
            on_step(step.t, step.loss)

    opt.register_step_post_hook(balance)
    annealed = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.5 * (1 + math.cos(math.pi * t / training.steps)))
    try:
        with projection.observing():
            fit(
                model,
                _batches(X, Y, training),
                opt,
                rewirer=rewirer,
                scheduler=annealed,
                loss=LOSSES[training.loss],
                on_step=told,
            )
    except Diverged as diverged:
        what = f"the loss is {diverged.loss} at step {diverged.step}"
        raise UsageError("fit_vector", what, remedy="use a smaller lr, or inputs of unit scale") from diverged
    finally:
        rewirer.release()
    return losses


def _batches(X: Tensor, Y: Tensor, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch of each step: samples drawn with replacement, or all."""
    rng = generator(training.seed, 2)
    for _ in range(training.steps):
        if training.batch is None or training.batch >= len(X):
            yield X, Y
        else:
            where = torch.randint(len(X), (training.batch,), generator=rng).to(X.device)
            yield X[where], Y[where]


def checked(who: str, X: object, Y: object, loss: str, s: int, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and targets (n, k), or labels (n,). Raises UsageError."""
    check_choice(who, "loss", loss, LOSSES)
    if loss == "cross_entropy":
        labels = tensor(who, "Y", Y)
        x, _ = inputs(who, X, labels)
        classes_of(who, labels)
        y = labels.long()
    else:
        x, y = inputs(who, X, Y)
    for width in widths:
        check_count(who, "neurons", width, 1)
    check_count(who, "s", s, len(widths) + 1)
    sizes = [x.shape[1], *widths, outputs(y, loss)]
    if s > (total := sum(a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))):
        what = f"the network has {total} weights, and cannot have {s} non-zeros"
        raise UsageError(who, what, remedy="use more neurons, or a smaller s")
    return x, y


class Units(NamedTuple):
    """The scaling of the data: training uses 2^-a X and 2^-b Y. The losses of Y are 4^b times those of 2^-b Y."""

    a: int
    b: int

    def told(self, on_step: Watch | None) -> Watch | None:
        """``on_step``, called with losses in units of the given Y."""
        return None if on_step is None else lambda t, loss: on_step(t, times(loss, 2 * self.b))

    def fit(self, network: ReLUNetwork, losses: list[float], reason: str) -> Fit:
        """The network on the given X if its dtype can hold it; else a network without weights, with the reason."""
        first, *between, last = network.layers
        below, above = put_back(first.values, -self.a), put_back(last.values, self.b)
        bias = None if last.bias is None else put_back(last.bias, self.b)
        losses = [times(loss, 2 * self.b) for loss in losses]
        if below is None or above is None or (last.bias is not None and bias is None):
            nothing = ReLUNetwork(tuple(largest(layer, 0) for layer in network.layers))
            return Fit(nothing, losses, False, beyond("the network", first.values, -self.a))
        layers = (first._replace(values=below), *between, last._replace(values=above, bias=bias))
        return Fit(ReLUNetwork(layers), losses, True, reason)


def in_units(X: Tensor, Y: Tensor, loss: str) -> tuple[Tensor, Tensor, Units]:
    """X and Y, scaled so that their largest entry is in [2, 4) unless it is in [1/4, 256). Labels are not scaled."""
    a, b = (0 if e in USUAL else e - 1 for e in (exponent(X), exponent(Y) if loss == "squared" else 0))
    return shifted(X, -a), shifted(Y, -b) if b else Y, Units(a, b)


def outputs(Y: Tensor, loss: str) -> int:
    """Number of outputs of a network for these targets."""
    return int(Y.max()) + 1 if loss == "cross_entropy" else Y.shape[1] if Y.dim() > 1 else 1
