# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Gates of ReLU networks: random generators that depend only on a seed, and gates stored as bits."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

DRAWN = 64  # columns, or generators, drawn from one random state


def random_generators(seed: int, neurons: range, features: int) -> Tensor:
    """Gate generators h_j ~ N(0, I) of some neurons, (k, features) float64.

    The generator of a neuron depends only on the seed and on the index of the neuron.
    """
    blocks = range(neurons.start // DRAWN, -(-neurons.stop // DRAWN))
    drawn = [torch.randn(DRAWN, features, generator=generator(seed, k), dtype=torch.float64) for k in blocks]
    first = neurons.start - blocks.start * DRAWN
    return torch.cat(drawn)[first : first + len(neurons)]


def generator(seed: int, *path: int) -> torch.Generator:
    """A random generator that depends only on the seed and on the numbers in ``path``."""
    state = np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def packed(gates: Iterable[Tensor]) -> Tensor:
    """Blocks of gates (n, k) bool, in order of the neurons, as bits (all neurons, ceil(n / 8)) uint8, lowest bit first.

    ``gates`` may be an iterator. Only one block of bools is then in memory at a time.
    """
    parts: list[Tensor] = []
    for part in gates:
        bits = torch.nn.functional.pad(part.T.to(torch.uint8), (0, -part.shape[0] % 8)).view(
            part.shape[1], -(-part.shape[0] // 8), 8
        )
        parts.append((bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(2, dtype=torch.uint8))
    return torch.cat(parts)


def unpacked(bits: Tensor, n: int) -> Tensor:
    """The inverse of :func:`packed`: (k, ceil(n / 8)) uint8 -> (k, n) bool."""
    spread = (bits[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return spread.flatten(1)[:, :n].bool()
