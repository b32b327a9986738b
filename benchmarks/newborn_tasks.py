"""The tasks of ``newborns.py``: records of settings that make networks and batches, and measure the held-out data.

The fields of a task identify it: two runs with equal fields, cell and data are the same run.
"""

import math
from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.cli import files
from gossamer.cli.models import MLP
from gossamer.cli.tasks import Data, FashionMNIST, Planted, Task, normalised, stream

HELD_OUT = 10  # one in HELD_OUT examples is held out


@dataclass(kw_only=True)
class Setting:
    """The settings that all cells of a task share."""

    steps: int
    batch: int
    lr: float = 1e-3  # for dense weights; sparse weights have lr / density^0.5
    weight_decay: float = 0.01
    warm_up: int = 0  # steps; then half a cosine to 0
    every: int  # steps between events of RigL and SET, and between the first ones of CSST
    last_every: int  # steps between the last events of CSST
    stop: float = 0.75  # of the steps

    def rate(self, t: int) -> float:
        """Factor on the step size at step t + 1."""
        return min(1.0, (t + 1) / self.warm_up if self.warm_up else 1.0) * (1 + math.cos(math.pi * t / self.steps)) / 2

    def topology(self, method: str) -> gs.Topology:
        """The topology: RigL and SET exchange 0.3 of the connections at first, as usual, and CSST one half."""
        stop = round(self.stop * self.steps)
        if method == "csst":
            settings = gs.CSST(stop, self.every, self.last_every, drop_fraction=0.5, selectivity=1.0)
        else:
            settings = {"rigl": gs.RigL, "set": gs.SET}[method](stop, self.every, 0.3)
        return settings.resolve(self.steps)

    def network(self, seed: int) -> nn.Module:
        """The dense network."""
        raise NotImplementedError

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch for every step."""
        raise NotImplementedError

    def metric(self, net: nn.Module) -> float:
        """The metric on the held-out data."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Images(Setting):
    """Accuracy in per cent of a perceptron; five epochs."""

    steps: int = 5 * 422
    batch: int = 128
    every: int = 100
    last_every: int = 1000
    widths: tuple[int, ...] = (512, 512)
    made: bool = False  # artificial images instead of files
    folder: InitVar[str | None] = None  # folder of the files

    def __post_init__(self, folder: str | None):
        self.folder = folder

    @cached_property
    def data(self) -> Data:
        """The data: the first nine tenths of the training set for training, the last tenth as the test set."""
        if self.made:
            return Planted(features=20, relevant=8, hidden=8, examples=1000).load()
        x, y = FashionMNIST(self.folder).paths()[:2]
        x, y = files.read_idx(x, 3).unsqueeze(1), files.read_idx(y, 1).long()
        n = len(y) - len(y) // HELD_OUT
        return normalised(x[:n], y[:n], x[n:], y[n:], 10)

    def network(self, seed: int) -> nn.Module:
        return MLP(self.widths).build(self.data.shape, self.data.classes, stream(seed, "init"))

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        left, epoch = self.steps, 0
        while left:
            for batch in self.data.batches(self.batch, seed, epoch):
                yield batch
                left -= 1
                if not left:
                    return
            epoch += 1

    def metric(self, net: nn.Module) -> float:
        return 100 * Task().metrics(net, self.data)["accuracy"]


@dataclass(kw_only=True)
class Text(Setting):
    """Bits per character of a transformer."""

    steps: int = 1200
    batch: int = 16
    lr: float = 3e-3
    warm_up: int = 50
    every: int = 50
    last_every: int = 100
    context: int = 64
    width: int = 128
    heads: int = 4
    layers: int = 2
    file: InitVar[Path | None] = None  # the text

    def __post_init__(self, file: Path | None):
        self.file = file

    @cached_property
    def alphabet(self) -> list[str]:
        """The text's characters."""
        return sorted(set(self.text))

    @cached_property
    def text(self) -> str:
        """All of it."""
        if self.file is None or not self.file.is_file():
            raise gs.UsageError(
                "newborns", "the task text needs a text file", got=self.file, remedy="--data FILE, or --tasks images"
            )
        return self.file.read_text()

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The training characters and the held-out characters, as numbers."""
        number = {c: i for i, c in enumerate(self.alphabet)}
        codes = torch.tensor([number[c] for c in self.text])
        n = len(codes) - len(codes) // HELD_OUT
        return codes[:n], codes[n:]

    def network(self, seed: int) -> nn.Module:
        return Transformer(len(self.alphabet), self, stream(seed, "init"))

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        codes, rng = self.parts[0], stream(seed, "order")
        for _ in range(self.steps):
            at = torch.randint(len(codes) - self.context, (self.batch, 1), generator=rng) + torch.arange(self.context)
            yield codes[at], codes[at + 1].flatten()

    @torch.no_grad()
    def metric(self, net: nn.Module) -> float:
        codes = self.parts[1]
        n = (len(codes) - 1) // self.context * self.context
        x, y = codes[:n].view(-1, self.context).split(self.batch), codes[1 : n + 1].split(self.batch * self.context)
        return (
            sum(float(F.cross_entropy(net(a), b, reduction="sum")) for a, b in zip(x, y, strict=True)) / n / math.log(2)
        )


class Block(nn.Module):
    """Causal attention, then a perceptron, each on normalised inputs and with a residual connection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, width) -> (batch, context, width)."""
        h = self.norm1(x)
        q, k, v = (project(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Characters (batch, context) -> scores (batch * context, characters); the head is the embedding."""

    def __init__(self, characters: int, size: Text, rng: torch.Generator):
        super().__init__()
        self.embedding, self.place = nn.Embedding(characters, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu", generator=rng)
                nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=0.02, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.blocks(self.embedding(x) + self.place.weight[: x.shape[1]]))
        return F.linear(h.flatten(0, 1), self.embedding.weight)
