"""Tasks: data, and the metrics of a trained model.

A task is a frozen record of settings. ``check()`` raises UsageError on missing files, before any work. ``load()``
returns :class:`Data`. ``metrics()`` measures a model on the test set. Images are uint8 in memory; each batch is
normalised when it is read. Batches depend only on the seed, the epoch and the position, so a run that was stopped
within an epoch resumes exactly.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import UsageError, check_at_least
from . import extras, files
from .environment import check_memory

EVALUATION_BATCH = 1000
STREAMS = ("init", "support", "topology", "order", "augment", "data", "torch")


def stream(seed: int, name: str, *at: int) -> torch.Generator:
    """The random generator of one purpose (of ``STREAMS``), epoch and position. Every process gets the same one."""
    state = np.random.SeedSequence([seed, STREAMS.index(name), *at]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


class Data(NamedTuple):
    """A classification problem in memory; x (n, *shape) raw, y (n,) int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    mean: Tensor  # of the raw training inputs, per channel; broadcasts against x[0]
    std: Tensor
    augment: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_x.shape[1:])

    def inputs(self, raw: Tensor) -> Tensor:
        """Raw inputs (b, *shape), converted to float32 and normalised."""
        return (raw.float() - self.mean) / self.std

    def batches(self, batch: int, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (x, y) of one epoch, in random order, from batch ``start`` on. The last one may be smaller."""
        order = torch.randperm(len(self.train_y), generator=stream(seed, "order", epoch))
        for i in range(start, math.ceil(len(order) / batch)):
            where = order[i * batch : (i + 1) * batch]
            raw = self.train_x[where]
            if self.augment:
                raw = crop_and_flip(raw, stream(seed, "augment", epoch, i))
            yield self.inputs(raw), self.train_y[where]


def crop_and_flip(x: Tensor, rng: torch.Generator, pad: int = 4) -> Tensor:
    """Each image of (b, c, h, w) shifted by up to ``pad`` pixels (zeros at the edge), mirrored with probability 1/2."""
    b, c, h, w = x.shape
    down = torch.randint(2 * pad + 1, (b, 1), generator=rng) + torch.arange(h)  # (b, h)
    right = torch.randint(2 * pad + 1, (b, 1), generator=rng) + torch.arange(w)  # (b, w)
    mirrored = torch.rand(b, 1, generator=rng) < 0.5
    right = torch.where(mirrored, right.flip(1), right)
    padded = F.pad(x, (pad, pad, pad, pad))
    image, channel = torch.arange(b).view(b, 1, 1, 1), torch.arange(c).view(1, c, 1, 1)
    return padded[image, channel, down.view(b, 1, h, 1), right.view(b, 1, 1, w)]


def normalised(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, augment: bool = False
) -> Data:
    """Data with the mean and standard deviation of the training images, per channel; images (n, c, h, w)."""
    total, square = (
        torch.stack([(train_x[:, c].double() ** p).mean() for c in range(train_x.shape[1])]) for p in (1, 2)
    )
    std = (square - total**2).clamp_min(1e-12).sqrt()
    return Data(
        train_x, train_y, test_x, test_y, classes, total.float().view(-1, 1, 1), std.float().view(-1, 1, 1), augment
    )


class Task:
    """The interface of all tasks."""

    def check(self) -> None:
        """Raises UsageError if the task cannot be loaded here: missing files or packages."""

    def load(self) -> Data:
        """Reads and checks the data. Raises UsageError."""
        raise NotImplementedError

    def metrics(self, model: nn.Module, data: Data) -> dict[str, float]:
        """``accuracy`` and ``loss`` (cross-entropy) on the test set, in evaluation mode; the mode is restored."""
        mode, right, loss = model.training, 0, 0.0
        model.eval()
        with torch.no_grad():
            for i in range(0, len(data.test_y), EVALUATION_BATCH):
                y = data.test_y[i : i + EVALUATION_BATCH]
                scores = model(data.inputs(data.test_x[i : i + EVALUATION_BATCH])).float()
                right += int((scores.argmax(1) == y).sum())
                loss += float(F.cross_entropy(scores, y, reduction="sum"))
        model.train(mode)
        return {"accuracy": right / len(data.test_y), "loss": loss / len(data.test_y)}


@dataclass(frozen=True)
class Digits(Task):
    """Handwritten digits, 1,797 images of 8 x 8 pixels, a part of scikit-learn: no download.

    The last 500 are the test set.
    """

    def check(self) -> None:
        extras.require("run", "task digits")

    def load(self) -> Data:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)  # type: ignore[union-attr]
        y = torch.from_numpy(bunch.target.astype(np.int64))  # type: ignore[union-attr]
        return normalised(x[:-500], y[:-500], x[-500:], y[-500:], 10)


@dataclass(frozen=True)
class Files(Task):
    """A task that reads the official files of a data set.

    Args:
        data: folder of the files, or the folder above it. Default: the variable GOSSAMER_DATA, else ``data``.
    """

    data: str | None = None

    title: ClassVar[str]
    home: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]  # sub-folders to search, the official one first
    names: ClassVar[tuple[str, ...]]

    def paths(self) -> list[Path]:
        """The files, in the order of ``names``.

        Raises: UsageError with the missing files, the searched folders and the source of the files.
        """
        root = Path(self.data or os.environ.get("GOSSAMER_DATA") or "data")
        folders = [root / folder for folder in self.folders] + [root]
        found, lacking = files.find(folders, self.names)
        if lacking:
            raise UsageError(
                f"task {self.title}",
                f"{len(lacking)} of {len(self.names)} data files are missing",
                reasons=[*lacking, "looked in " + ", ".join(str(folder) for folder in folders)],
                remedy=f"download them from {self.home} into {folders[0]}, "
                "or give their folder by --task.data or GOSSAMER_DATA",
            )
        return found

    def check(self) -> None:
        self.paths()


class Idx(Files):
    """The common part of the two data sets in IDX files."""

    names = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))

    def load(self) -> Data:
        paths = self.paths()
        parts = []
        for images, labels in (paths[:2], paths[2:]):
            x, y = files.read_idx(images, 3), files.read_idx(labels, 1).long()
            if len(x) != len(y):
                raise UsageError(str(images), f"{len(x)} images, but {labels.name} holds {len(y)} labels")
            _check_labels(labels, y, 10)
            parts += [x.unsqueeze(1), y]
        return normalised(*parts, classes=10)


class MNIST(Idx):
    """MNIST, 70,000 handwritten digits of 28 x 28 pixels, from its four IDX files (plain or .gz)."""

    title, home, folders = "mnist", "http://yann.lecun.com/exdb/mnist (MNIST)", ("mnist", "MNIST/raw")


class FashionMNIST(Idx):
    """Fashion-MNIST, 70,000 pictures of clothes of 28 x 28 pixels, from its four IDX files (plain or .gz)."""

    title, home, folders = (
        "fashion-mnist",
        "https://github.com/zalandoresearch/fashion-mnist",
        ("fashion-mnist", "FashionMNIST/raw"),
    )


@dataclass(frozen=True)
class Cifar(Files):
    """The common part of the two CIFAR sets: 60,000 colour images of 32 x 32 pixels, binary version.

    Args:
        data: folder of the files, or the folder above it. Default: the variable GOSSAMER_DATA, else ``data``.
        augment: crop (padding 4) and mirror the training images at random.
    """

    augment: bool = True

    home = "https://www.cs.toronto.edu/~kriz/cifar.html (binary version)"
    classes: ClassVar[int]
    label_bytes: ClassVar[int]
    records: ClassVar[tuple[int, ...]]  # per file; the last file is the test set

    def load(self) -> Data:
        paths = self.paths()
        parts = [files.read_cifar(path, self.label_bytes, n) for path, n in zip(paths, self.records, strict=True)]
        for path, (_, y) in zip(paths, parts, strict=True):
            _check_labels(path, y, self.classes)
        train_x, train_y = (torch.cat(column) for column in zip(*parts[:-1], strict=True))
        return normalised(train_x, train_y, *parts[-1], classes=self.classes, augment=self.augment)


class CIFAR10(Cifar):
    """CIFAR-10, ten classes, from the six files of its binary version."""

    title, folders = "cifar10", ("cifar-10-batches-bin",)
    names = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
    classes, label_bytes, records = 10, 1, (10_000,) * 6


class CIFAR100(Cifar):
    """CIFAR-100, a hundred classes, from the two files of its binary version."""

    title, folders = "cifar100", ("cifar-100-binary",)
    names = ("train.bin", "test.bin")
    classes, label_bytes, records = 100, 2, (50_000, 10_000)


@dataclass(frozen=True)
class Planted(Task):
    """Gaussian inputs with the labels of a sparse two-layer ReLU network, the teacher, which reads few inputs.

    Adds the metric ``found``, a fraction of the squared weights of the model's first layer: the part on the inputs
    that the teacher reads.

    Args:
        features: number of inputs.
        relevant: number of inputs that the teacher reads.
        hidden: number of hidden units of the teacher.
        fan_in: number of inputs of each hidden unit.
        classes: number of labels, about equally frequent.
        examples: number of training examples; the test set has a quarter as many.
        noise: fraction of the training labels that random labels replace.
        seed: seed of the teacher and the data; the seed of the run is another setting.
    """

    features: int = 64
    relevant: int = 16
    hidden: int = 32
    fan_in: int = 4
    classes: int = 4
    examples: int = 4000
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name, least in (
            ("features", 1),
            ("relevant", 1),
            ("hidden", 1),
            ("fan_in", 1),
            ("classes", 2),
            ("examples", 4),
            ("seed", 0),
        ):
            check_at_least("task planted", name, getattr(self, name), least)
        if not self.fan_in <= self.relevant <= self.features:
            raise UsageError(
                "task planted", "needs fan_in <= relevant <= features", got=(self.fan_in, self.relevant, self.features)
            )
        inputs, hidden = self.examples * 5 // 4 * self.features, self.hidden * (self.features + self.classes)
        check_memory(
            "task planted", "its examples", inputs + hidden + self.examples * 5 // 4 * (self.hidden + self.classes)
        )
        if not 0.0 <= self.noise <= 1.0:
            raise UsageError("task planted", "noise is a fraction, a number in [0, 1]", got=self.noise)

    def teacher(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(indices of the inputs it reads (relevant,), first weight (hidden, features), second (classes, hidden))."""
        used = torch.randperm(self.features, generator=rng)[: self.relevant].sort().values
        first = torch.zeros(self.hidden, self.features)
        for row in first:
            read = used[torch.randperm(self.relevant, generator=rng)[: self.fan_in]]
            row[read] = torch.randn(self.fan_in, generator=rng) / math.sqrt(self.fan_in)
        return used, first, torch.randn(self.classes, self.hidden, generator=rng) / math.sqrt(self.hidden)

    def load(self) -> Data:
        rng = stream(self.seed, "data")
        _, first, second = self.teacher(rng)
        x = torch.randn(self.examples + self.examples // 4, self.features, generator=rng)
        scores = F.relu(x @ first.T) @ second.T
        y = (scores - scores.mean(0)).argmax(1)
        flips = torch.rand(self.examples, generator=rng) < self.noise
        random = torch.randint(self.classes, (self.examples,), generator=rng)
        train_y = torch.where(flips, random, y[: self.examples])
        zero, one = torch.zeros(self.features), torch.ones(self.features)
        return Data(x[: self.examples], train_y, x[self.examples :], y[self.examples :], self.classes, zero, one)

    def metrics(self, model: nn.Module, data: Data) -> dict[str, float]:
        from ..layers import SparseLinear

        first = next(
            (m for m in model.modules() if isinstance(m, (nn.Linear, SparseLinear)) and m.in_features == self.features),
            None,
        )
        if first is None:
            what = f"the model's first layer must be linear with {self.features} inputs"
            raise UsageError("task planted", what, remedy="--model mlp")
        weight = first.to_dense() if isinstance(first, SparseLinear) else first.weight
        power = weight.detach().double().square().sum(0)  # (features,)
        used, _, _ = self.teacher(stream(self.seed, "data"))
        return {**super().metrics(model, data), "found": float(power[used].sum() / power.sum())}


TASKS: dict[str, type[Task]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "planted": Planted,
}


def _check_labels(path: Path, y: Tensor, classes: int) -> None:
    if len(y) == 0:
        raise UsageError(str(path), "the file has no example")
    if int(y.max()) >= classes:
        raise UsageError(
            str(path), f"labels must be below {classes}: the file is damaged or of another data set", got=int(y.max())
        )
