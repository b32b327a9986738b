# pyright: strict
"""The channels of one tensor inside a model: which stay together, and which are constant."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["image", "vector"]  # (N, C, H, W), or (N, ..., F) with the features last


@dataclass(eq=False)
class Space:
    """The channels of one or several tensors. A channel is kept in all of these tensors or in none.

    The operands of a sum have the same channels, so a sum joins their spaces (:meth:`join`). ``parent`` leads from a
    joined space to its root.
    """

    size: int
    pinned: str = ""  # why all channels must stay; "" if they may be removed
    ties: list[Tensor] = field(
        default_factory=list[Tensor]
    )  # (size,) int64 labels: channels with the same label stay together
    parent: "Space | None" = None

    def root(self) -> "Space":
        """The root of this space: the end of the chain of parents."""
        return self if self.parent is None else self.parent.root()

    def pin(self, reason: str) -> None:
        """Marks all channels as channels that must stay."""
        root = self.root()
        root.pinned = root.pinned or reason

    def tie(self, width: int, tile: int) -> None:
        """Ties the channels that share a block. A channel has ``width`` columns, a block has ``tile`` columns."""
        if tile > 1:
            starts = torch.arange(self.size) * width % tile == 0
            self.root().ties.append(starts.cumsum(0) - 1)

    def join(self, other: "Space") -> None:
        """Joins two spaces into one."""
        a, b = self.root(), other.root()
        if a is not b:
            b.parent = a
            a.pinned = a.pinned or b.pinned
            a.ties += b.ties


@dataclass(eq=False)
class Value:
    """One tensor. ``constant``, (size, 1) or (size, spread) float64, has the value of each channel or feature.

    It is NaN where the value depends on the input.
    """

    space: Space
    kind: Kind
    constant: Tensor
    spread: int | None = 1  # features per channel; None: the pixels of an image, known at the next layer
    memory: "list[Value]" = field(default_factory=list["Value"])  # tensors that may share memory with this one

    def __post_init__(self) -> None:
        self.memory.append(self)

    def known(self, features: int) -> bool:
        """Whether the tensor has this number of features. Sets ``spread`` if it is None."""
        if self.spread is None and features % self.space.size == 0:
            self.spread = features // self.space.size
        return self.spread is not None and self.space.size * self.spread == features

    def by_feature(self) -> Tensor:
        """The constants of all features, (size * spread,)."""
        return self.constant.expand(self.space.size, self.spread or 1).flatten()

    def result(
        self, constant: Tensor, *, kind: Kind | None = None, alias: bool = False, written: bool = False
    ) -> "Value":
        """The result of an operation that keeps the channels.

        Args:
            constant: the constants of the result.
            kind: the kind of the result; None: the kind of this tensor.
            alias: the result may share memory with this tensor.
            written: the operation may write to this memory; all tensors that share it lose their constants.
        """
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
    """The constants, all NaN, of channels that depend on the input, (size, 1)."""
    return torch.full((size, 1), torch.nan, dtype=torch.float64)
