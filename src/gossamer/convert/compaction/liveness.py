# pyright: strict
"""Liveness: the channels that must stay.

    a channel of the output of the model, or of the input of an unsupported operation, stays
    if output channel i of a layer stays, every channel j with W_ij != 0 stays, unless j is constant
    channels that share a block of a blocked support stay together; at least one channel of every space stays

The smallest set with these properties is found by repetition until nothing changes. All other channels can be removed
together. A remaining channel does not read them, or reads a constant from them, which is added to its bias.
"""

import torch
from torch import Tensor

from .graph import Channels
from .values import Space

Live = dict[Space, Tensor]  # root space -> the channels that stay, (size,) bool


def live_channels(channels: Channels) -> Live:
    """The channels of each space that must stay."""
    live: Live = {s: torch.full((s.size,), bool(s.pinned)) for s in channels.spaces()}
    while _grow(live, channels):
        pass
    return live


def _grow(live: Live, channels: Channels) -> bool:
    """One round, from the output to the input. Returns whether it found more channels."""
    before = sum(int(kept.sum()) for kept in live.values())
    for reader in reversed(channels.readers):
        if reader.source is not None:
            reads = live[reader.made.root()][reader.weights.row] & reader.constant.isnan()
            live[reader.source.root()][reader.channel[reads]] = True
    for space, kept in live.items():
        for labels in space.ties:
            kept |= torch.zeros(space.size, dtype=torch.bool).index_put((labels[kept],), torch.tensor(True))[labels]
    if sum(int(kept.sum()) for kept in live.values()) > before:
        return True
    for kept in live.values():
        if kept.numel() and not kept.any():
            kept[0] = True
            return True
    return False
