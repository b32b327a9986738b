"""A tiny training run that the laws train, copy and compare."""

# torch leaves fork_rng and Tensor.backward without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..convert.sparsify import sparsify
from ..layers import sparse_layers
from ..layouts import Layout
from ..topology import Topology, TopologyLike
from .details import Optimizers

Rewirers = Callable[..., Any]  # gossamer.Rewirer, or a class with its signature and methods
Snapshot = tuple[Any, Any, Any]  # state_dict of model, optimizer and rewirer


def resolved(topology: TopologyLike, steps: int | None = None) -> Topology:
    """The record of the topology for ``steps`` steps.

    Raises: UsageError if ``stop`` is a fraction and ``steps`` is None.
    """
    found = topology.resolve(steps)
    # The class of a user may return another type.
    if not isinstance(found, Topology):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise AssertionError(f"{topology!r}: resolve(steps) must return a Topology, not {type(found).__name__}")
    return found


class Run:
    """Model, optimizer, rewirer and batches of a training run.

    Args:
        topology: the topology.
        rewirer: makes the rewirer.
        layout: layout of the sparse layers.
        block: block of the sparse layers.
        optimizer: makes the optimizer.
        seed: seed of the weights, the supports and the rewirer. The batches do not depend on it.
    """

    def __init__(
        self,
        topology: Topology,
        rewirer: Rewirers,
        layout: str | Layout,
        block: tuple[int, int],
        optimizer: Optimizers,
        seed: int,
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(nn.Linear(9, 11), nn.Tanh(), nn.Linear(11, 6)).double()
        for p in model.parameters():  # biases too must depend on the seed, and not on torch's global generator
            nn.init.normal_(p, 0.0, 0.3, generator=rng)
        fan_in = max(1, topology.min_fan_in)
        self.model: nn.Module = sparsify(
            model, 0.4, budget="pooled", layout=layout, block=block, min_fan_in=fan_in, rng=rng
        )
        self.optimizer = optimizer(self.model.parameters())
        self.rewirer = rewirer(self.model, self.optimizer, topology, rng=torch.Generator().manual_seed(seed))
        self.layers = sparse_layers(self.model)
        self.at = 0

    def with_parts(self, model: nn.Module, optimizer: torch.optim.Optimizer, rewirer: Any, at: int) -> "Run":
        """The same run, in its state after step ``at``, with other parts."""
        run = copy.copy(self)
        run.model, run.optimizer, run.rewirer, run.layers, run.at = model, optimizer, rewirer, sparse_layers(model), at
        return run

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Input (4, 9) and target (4, 6) of step t."""
        rng = torch.Generator().manual_seed(1000 + t)
        x, y = (torch.randn(4, n, generator=rng, dtype=torch.float64) for n in (9, 6))
        return x, y

    def backward(self, t: int, set_to_none: bool = True, passes: int = 1) -> None:
        """Computes the gradients of step t, in one or several backward passes."""
        x, y = self.batch(t)
        self.optimizer.zero_grad(set_to_none=set_to_none)
        for a, b in zip(x.chunk(passes), y.chunk(passes), strict=True):
            (F.mse_loss(self.model(a), b) / passes).backward()

    def train(self, first: int, last: int) -> None:
        """Trains the steps ``first`` to ``last``."""
        for t in range(first, last + 1):
            self.backward(t)
            self.rewirer.step()

    def snapshot(self) -> Snapshot:
        """A copy of all states."""
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.rewirer.state_dict()))

    def restore(self, snapshot: Snapshot) -> None:
        """Loads all states."""
        for part, state in zip((self.model, self.optimizer, self.rewirer), snapshot, strict=True):
            part.load_state_dict(copy.deepcopy(state))
