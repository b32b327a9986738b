"""Models: frozen records of settings. ``build`` makes the dense network; ``sparsify`` then makes it sparse.

Initial weights are normal with variance 2 / fan_in (Kaiming), from an explicit generator. Initial biases are 0.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import UsageError
from .environment import check_memory


class Model:
    """The interface of all models."""

    def build(self, shape: tuple[int, ...], classes: int, rng: torch.Generator) -> nn.Module:
        """The dense network with initial values, for inputs of this shape (without the batch dimension).

        Raises: UsageError if the inputs do not fit.
        """
        net = self.net(shape, classes)
        for m in net.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu", generator=rng)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        return net

    def net(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network before the initial values are drawn."""
        raise NotImplementedError


@dataclass(frozen=True)
class MLP(Model):
    """Fully connected network with ReLU: inputs of any shape, hidden layers of any widths.

    Args:
        widths: widths of the hidden layers, first layer first; [] gives a linear classifier.
    """

    widths: tuple[int, ...] = (256, 256)

    def __post_init__(self):
        if any(width < 1 for width in self.widths):
            raise UsageError("model mlp", "widths must be whole numbers of at least 1", got=self.widths)

    def net(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        sizes = [math.prod(shape), *self.widths, classes]
        weights = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
        check_memory("model mlp", f"the values of {weights:,} weights, their gradient and a momentum", 3 * weights)
        layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        for i in range(len(sizes) - 1):
            layers.append((f"fc{i + 1}", nn.Linear(sizes[i], sizes[i + 1])))
            if i < len(self.widths):
                layers.append((f"relu{i + 1}", nn.ReLU()))
        return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True)
class LeNet5(Model):
    """LeNet-5 of the pruning literature (20-50-500): two 5 x 5 convolutions with max-pooling, two linear layers."""

    def net(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, *sides = _image("model lenet5", shape, least=16)
        rows, cols = (((side - 4) // 2 - 4) // 2 for side in sides)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 20, 5),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(20, 50, 5),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(50 * rows * cols, 500),
                relu=nn.ReLU(),
                fc2=nn.Linear(500, classes),
            )
        )


@dataclass(frozen=True)
class ResNet20(Model):
    """ResNet-20 for CIFAR (He et al. 2016): three stages of 16, 32, 64 channels, shortcuts without parameters (A)."""

    def net(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, *_ = _image("model resnet20", shape, least=4)
        return ResNet(channels, (16, 32, 64), 3, classes, projection=False)


@dataclass(frozen=True)
class ResNet18(Model):
    """ResNet-18 for CIFAR: stages of 64, 128, 256, 512 channels, two blocks each, 3 x 3 stem, projections (B)."""

    def net(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, *_ = _image("model resnet18", shape, least=8)
        return ResNet(channels, (64, 128, 256, 512), 2, classes, projection=True)


@dataclass(frozen=True)
class VGG16(Model):
    """VGG-16 with batch normalisation for CIFAR: thirteen 3 x 3 convolutions and one linear layer from 512 features."""

    def net(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        channels, *_ = _image("model vgg16-bn", shape, least=32)
        layers: list[nn.Module] = []
        for stage in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        pooled = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(
            OrderedDict(features=nn.Sequential(*layers), pool=pooled, flatten=nn.Flatten(), fc=nn.Linear(512, classes))
        )


MODELS: dict[str, type[Model]] = {
    "mlp": MLP,
    "lenet5": LeNet5,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "vgg16-bn": VGG16,
}


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: a 1 x 1 projection, or every other pixel with zero channels appended."""

    def __init__(self, before: int, width: int, stride: int, projection: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.more = width - before
        self.subsample = nn.AvgPool2d(1, stride)  # windows of one pixel: takes every stride-th pixel
        self.projection = None
        if projection and (stride != 1 or self.more):
            self.projection = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) -> (b, width, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        if self.projection is not None:
            return F.relu(y + self.projection(x))
        if self.subsample.stride != 1 or self.more:
            short = self.subsample(x).transpose(0, 1)  # (channels, b, ...): padding it so keeps the memory format
            x = F.pad(short, (0, 0, 0, 0, 0, 0, self.more // 2, self.more - self.more // 2)).transpose(0, 1)
        return F.relu(y + x)


class ResNet(nn.Module):
    """A 3 x 3 stem, stages of residual blocks, mean pooling, one linear layer. Each later stage halves the image."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: int, classes: int, projection: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            for j in range(blocks):
                stages.append(Block(before, width, 2 if i > 0 and j == 0 else 1, projection))
                before = width
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) -> (b, classes)."""
        y = self.blocks(self.bn(self.conv(x)))
        return self.fc(self.pool(y).flatten(1))


def _image(who: str, shape: tuple[int, ...], least: int) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape[1:]) < least:
        what = f"needs images (channels, rows, cols) of at least {least} x {least} pixels"
        raise UsageError(who, what, got=shape, remedy="--model mlp, which takes inputs of any shape")
    return shape
