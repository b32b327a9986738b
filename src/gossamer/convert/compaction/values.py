# pyright: strict
"""What is known of one tensor inside a model: its channels, the channels that are kept together, and the constant
ones."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["image", "vector"]  # (N, C, H, W), or (N, ..., F) with the features last


@dataclass(eq=False)
class Space:
    """The channels of one or several tensors. A channel is kept in all of these tensors or in none.

    A sum needs its operands to have the same channels, so it joins their spaces (:meth:`join`); ``parent`` then leads
    to the one that stands for both.
    """

    size: int
    pinned: str = ""  # why no channel may be removed
    ties: list[Tensor] = field(
        default_factory=list[Tensor]
    )  # (size,) int64 labels: channels of one label stay together
    parent: "Space | None" = None

    def root(self) -> "Space":
        """The space that stands for this one."""
        return self if self.parent is None else self.parent.root()

    def pin(self, reason: str) -> None:
        """Keeps all channels."""
        root = self.root()
        root.pinned = root.pinned or reason

    def tie(self, width: int, tile: int) -> None:
        """Keeps those channels together that share a tile, if each has ``width`` places and a tile takes ``tile`` of
        them."""
        if tile > 1:
            starts = torch.arange(self.size) * width % tile == 0
            self.root().ties.append(starts.cumsum(0) - 1)

    def join(self, other: "Space") -> None:
        """Makes one space of two."""
        a, b = self.root(), other.root()
        if a is not b:
            b.parent = a
            a.pinned = a.pinned or b.pinned
            a.ties += b.ties


@dataclass(eq=False)
class Value:
    """One tensor. ``constant``, (size, 1) or (size, spread) float64, is the value that a channel has at every place
    and for every input; NaN if the channel depends on the input."""

    space: Space
    kind: Kind
    constant: Tensor
    spread: int | None = 1  # features per channel; None: the pixels of an image, whose number the next layer tells
    memory: "list[Value]" = field(default_factory=list["Value"])  # tensors that may lie in the same memory

    def __post_init__(self) -> None:
        self.memory.append(self)

    def known(self, features: int) -> bool:
        """Whether the tensor has this many features; settles ``spread`` if it is open."""
        if self.spread is None and features % self.space.size == 0:
            self.spread = features // self.space.size
        return self.spread is not None and self.space.size * self.spread == features

    def by_feature(self) -> Tensor:
        """The constants of all features, (size * spread,)."""
        return self.constant.expand(self.space.size, self.spread or 1).flatten()

    def result(
        self, constant: Tensor, *, kind: Kind | None = None, alias: bool = False, written: bool = False
    ) -> "Value":
        """The result of an operation that keeps the channels. ``alias``: the result may share memory with this tensor.
        ``written``: the operation may have written to this memory, so the constants of all tensors in it are lost."""
        if written:
            self.forget()
        memory = self.memory if alias or written else list["Value"]()
        return Value(
            self.space, kind or self.kind, torch.where(constant.isfinite(), constant, torch.nan), self.spread, memory
        )

    def forget(self) -> None:
        """Drops the constants of all tensors that may share this memory."""
        for value in self.memory:
            value.constant = torch.full_like(value.constant, torch.nan)


def unknown(size: int) -> Tensor:
    """Constants of channels that all depend on the input, (size, 1)."""
    return torch.full((size, 1), torch.nan, dtype=torch.float64)
