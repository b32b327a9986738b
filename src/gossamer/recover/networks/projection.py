# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportConstantRedefinition=false
"""The topology of sparse ReLU networks: all layers are thresholded as one vector.   arXiv 2509.20323, vector outputs

    w <- H_k(z), z = w on the supports, eta g off them                                                             (2)

    g      mean gradient of the loss over the batches of the last ``window`` steps
    eta    lr sqrt(every) / rms(gradient on the supports): about how far a typical weight moves until the next event
    k      falls cubically from its start to s; at most ``swap`` k weights enter, a fraction that is cosine-annealed
           to 0                                                                                                    (3)

A weight that enters starts at 0, so its entry does not change the function. Before (2) the weights of each neuron are
balanced: |w1_j| = |w2_j|, with the function unchanged. A threshold across layers compares them.

A neuron without weights has no gradient and would never return. Each event but the last therefore gives ``scouts`` of
these neurons a random gate. The pair of input and output weight with the strongest gradient under that gate enters. The
output weight starts with the mean size of its layer.

The other slots of a :class:`~gossamer.Topology` cannot express three parts of this: |w| of all layers is ranked
together with eta |g|; the sum of the sizes of the layers falls; and scouts need operands, because their gates are not
those of the network. It therefore uses the slot ``project``, which returns the new supports of all layers.

State: the operands of ``window`` batches. Cost of an event: one dense gradient of these batches, a block at a time.
"""

import math
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..._backend.dispatch import choose
from ..._schedules import Events
from ...layers import SparseLinear
from ...products.sense.op import STRONGEST, top_k
from ...support import Support
from ...topology import LayerState, Sensing, Topology, Update
from ..arrays import unique
from ..gates import generator, random_generators

Pair = tuple[Tensor, Tensor]  # (dy, x) of one backward pass: (batch, out), (batch, in)


@dataclass(frozen=True)
class Thresholds:
    """The steps of the thresholds, and the numbers of weights that they keep.

    Args:
        stop: step of the last threshold.
        every: steps between thresholds.
        first: weights before the first threshold.
        s: weights after the last threshold.
        swap: fraction of k that may enter at step 0.
    """

    stop: int
    every: int
    first: int
    s: int
    swap: float

    @property
    def events(self) -> Events:
        """Multiples of ``every`` below ``stop``, and ``stop``."""
        return Events((*range(self.every, self.stop, self.every), self.stop))

    def kept(self, t: int) -> int:
        """k after the event of step t."""
        return min(self.first, max(self.s, round(self.s + (self.first - self.s) * (1 - t / self.stop) ** 3)))

    def entering(self, t: int) -> int:
        """Weights that may enter at the event of step t."""
        return round(self.swap * self.kept(t) * 0.5 * (1 + math.cos(math.pi * t / self.stop)))


class Projection:
    """(2) and (3) on the layers of one network, over one training.

    Args:
        layers: the layers of the network, in order.
        thresholds: steps and sizes of the thresholds.
        window: number of batches for the gradient.
        scouts: number of neurons without weights that get a random gate at each event.
        seed: seed of the scouts.
    """

    def __init__(self, layers: Sequence[SparseLinear], thresholds: Thresholds, window: int, scouts: int, seed: int):
        self.layers, self.thresholds, self.scouts, self.seed = layers, thresholds, scouts, seed
        self.events, self.done = thresholds.events, 0  # events so far
        self.operands: list[deque[Pair]] = [deque(maxlen=window) for _ in layers]
        self.entered: list[int] = []  # ids of the scouts' output weights at the last event

    @property
    def topology(self) -> Topology:
        """The projection as a :class:`~gossamer.Topology`."""
        return Topology(
            "projection",
            self.when,
            self.sense,
            project=self.project,
            stop=self.thresholds.stop,
            keeps_layer_sizes=False,
        )

    def when(self, t: int) -> Update | None:
        """Slot of the topology."""
        return Update(interval=self.events.gap(t)) if t in self.events else None

    def sense(self, t: int) -> Sensing | None:
        """Slot of the topology: it requests the gradient on the supports, for eta. :meth:`observing` serves g."""
        return Sensing(count=0, active=True) if t in self.events else None

    @contextmanager
    def observing(self) -> Generator[None, None, None]:
        """A context that keeps the operands of the last ``window`` backward passes since the last event."""
        with ExitStack() as stack:
            for layer, kept in zip(self.layers, self.operands, strict=True):
                stack.enter_context(layer.observe(partial(self._keep, kept)))
            yield

    def _keep(self, kept: "deque[Pair]", dy: Tensor, x: Tensor) -> None:
        if self.done < len(self.events):
            kept.append((dy, x))

    def project(self, states: Sequence[LayerState], update: Update, _rng: torch.Generator | None) -> list[Support]:
        """Slot of the topology: the supports after (2)."""
        t, last = self.events.steps[self.done], self.done + 1 == len(self.events)
        operands = [list(kept) for kept in self.operands]
        pairs = [] if last else self._scouted(operands)
        lr = states[0].lookahead / update.interval
        eta = lr * math.sqrt(self.thresholds.every) / max(_rms(states), 1e-30)
        found = projected(states, operands, self.thresholds.kept(t), eta, self.thresholds.entering(t), pairs)
        self.done += 1
        self.entered = [out for _, out in pairs[: _room(self.thresholds.kept(t), len(states))]]
        for kept in self.operands:
            kept.clear()
        return found

    def _scouted(self, operands: Sequence[Sequence[Pair]]) -> list[tuple[int, int]]:
        if not self.scouts or len(self.layers) < 2:
            return []
        hidden, out = self.layers[-2].support, self.layers[-1].support
        return scouted(hidden, out, operands[-2], operands[-1], self.scouts, self.seed, self.done)

    @torch.no_grad()
    def balance_(self) -> None:
        """Balances all neurons. Call it before the event, after the optimizer's step."""
        for before, after in zip(self.layers[:-1], self.layers[1:], strict=True):
            balance_(before, after)

    @torch.no_grad()
    def start_scouts_(self) -> None:
        """Gives the scouts' output weights the mean size of their layer. Call it after the event."""
        if self.entered:
            out = self.layers[-1]
            at = out.support.find(torch.tensor(self.entered, dtype=torch.int64, device=out.values.device))
            size = float(out.values.abs().mean())
            out.values[at] = torch.where(out.values[at] == 0, size, out.values[at])
            self.entered = []


def projected(
    states: Sequence[LayerState],
    operands: Sequence[Sequence[Pair]],
    k: int,
    eta: float,
    entering: int,
    pairs: Sequence[tuple[int, int]] = (),
) -> list[Support]:
    """(2): the supports of the k largest of |w| on the supports and eta |g| off them, over all layers together.

    Args:
        states: supports and weights of the layers.
        operands: (dy, x) of each layer in each batch; g is the mean of their gradients.
        k: number of weights after the event.
        eta: factor on the gradient.
        entering: largest number of weights that enter.
        pairs: ids of weights of the last two layers that always enter; they count in k.

    Each layer keeps at least one weight. Ties go to the lowest layer and id.
    """
    pairs = pairs[: _room(k, len(states))]
    ids: list[Tensor] = []
    scores: list[Tensor] = []
    for state, passes in zip(states, operands, strict=True):
        off, score = _candidates(state, list(passes), eta, entering)
        ids.append(torch.cat([state.s.ids(), off]))
        scores.append(torch.cat([state.w.abs(), score]))
    sizes = [state.s.n for state in states]
    kept = _joint_top(scores, sizes, k - 2 * len(pairs), entering)
    supports: list[Support] = []
    for i, (state, mine, chosen) in enumerate(zip(states, ids, kept, strict=True)):
        at = i - len(states) + 2  # which of a pair belongs to this layer
        extra = [pair[at] for pair in pairs] if at >= 0 else []
        new = torch.cat([mine[chosen], torch.tensor(extra, dtype=torch.int64, device=mine.device)])
        supports.append(Support.from_ids(unique(new)[0], state.s.shape))
    return supports


def _room(k: int, layers: int) -> int:
    """The number of pairs that may enter among k weights, with at least one other weight in each layer."""
    return max(0, (k - layers) // 2)


def _candidates(state: LayerState, passes: list[Pair], eta: float, most: int) -> tuple[Tensor, Tensor]:
    """The strongest places off one support and eta |g| there, g streamed from the operands: (m,) each."""
    s = state.s
    if not passes or not most or s.n == s.total:
        return s.ids()[:0], state.w[:0]
    asked = (passes, s, most, None)
    off, g = choose(STRONGEST, *asked).run(*asked)
    return off, eta / len(passes) * g.abs()


def _joint_top(scores: Sequence[Tensor], sizes: Sequence[int], k: int, entering: int) -> list[Tensor]:
    """The kept positions of each layer: the k highest scores of all, but at most ``entering`` candidates.

    Args:
        scores: the scores of each layer: of its ``sizes[i]`` weights, then of its candidates.
    """
    lengths = [score.numel() for score in scores]
    owner = torch.cat([torch.full((n,), i, device=scores[i].device) for i, n in enumerate(lengths)])
    new = torch.cat([torch.arange(n, device=owner.device) >= size for n, size in zip(lengths, sizes, strict=True)])
    score = torch.cat(list(scores))
    refused = new.clone()
    refused[top_k(torch.where(new, score, -1.0), min(entering, int(new.sum())))] = False
    for i in range(len(scores)):  # a layer keeps at least one weight
        score[top_k(torch.where((owner == i) & ~new, score, -1.0), 1)] = math.inf
    kept = top_k(torch.where(refused, -1.0, score), min(k, int((~refused).sum())))
    return [kept[owner[kept] == i] - sum(lengths[:i]) for i in range(len(scores))]


def scouted(
    hidden: Support, out: Support, below: Sequence[Pair], above: Sequence[Pair], scouts: int, seed: int, t: int
) -> list[tuple[int, int]]:
    """The ids of the input and the output weight that enter, for some neurons without weights.

    Args:
        hidden: support of the last layer but one.
        out: support of the last layer.
        below: operands of the last layer but one.
        above: operands of the last layer.
        scouts: largest number of neurons.
        seed: seed of the neurons and their gates.
        t: step of the event, also a seed.
    """
    p, d = hidden.shape
    dead = ((hidden.crow.diff() == 0) & (out.ccol.diff() == 0)).nonzero().flatten()
    if not dead.numel() or not below or not above:
        return []
    dead = dead[torch.randperm(dead.numel(), generator=generator(seed, 3, t))[:scouts].to(dead.device)]
    like = below[0][1]
    h = random_generators(seed + 1 + t, range(p), d)[dead.cpu()].to(like)
    g = torch.zeros(len(dead), out.shape[0], d, dtype=like.dtype, device=like.device)
    for (_, x), (dy, _) in zip(below, above, strict=True):
        gates = (x @ h.T > 0).to(x.dtype)  # (batch, scouts)
        g += torch.einsum("bs,bo,bd->sod", gates, dy, x)
    best = g.abs().flatten(1).argmax(1)
    return [(int(j) * d + int(at) % d, int(at) // d * p + int(j)) for j, at in zip(dead, best, strict=True)]


@torch.no_grad()
def balance_(before: SparseLinear, after: SparseLinear) -> None:
    """Scales the incoming weights (and bias) of each neuron by c and the outgoing ones by 1 / c: equal norms."""
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


def _rms(states: Sequence[LayerState]) -> float:
    """Root mean square of the gradient on all supports; a layer without a gradient counts as zeros."""
    total = sum(state.w.numel() for state in states)
    squares = sum(float(state.g.square().sum()) for state in states if state.g is not None)
    return math.sqrt(squares / max(total, 1))
