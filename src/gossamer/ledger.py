# pyright: strict
"""The ledger: FLOPs and bytes of a training run. Formulas give them for each step, from the weights of each layer.

For one layer with n of N weights kept, P output positions per example (H' W' of a convolution, 1 of a linear layer)
and batch B:

    forward, backward_input, backward_weight      2 B P n each     (one multiply-add = 2 FLOPs)
    sensing m weights off the support             2 B P m
    dense                                         n = N, no sensing
    shadow                                        n in the first two, N in the third (above a density, N in all)

The first layer's input needs no gradient: that product is not computed and not counted. Linear and Conv2d layers,
sparse or dense, are counted one by one. All other arithmetic that torch's FlopCounterMode finds in a forward pass
(attention, functional and transposed products) is one more entry. It is the same for the sparse and the dense model,
its backward pass counts twice its forward pass, and it has multiply-adds but no weights. Normalisation, losses,
activations and the bookkeeping of events are not counted (as in Evci et al. 2020, appendix H). The masked layout runs
dense arithmetic. Its count is what a sparse kernel would do; it is labelled "simulated".
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ._errors import UsageError, nearest
from ._modules import eval_mode, named_modules
from .layers import SparseLayer

OTHER = "(other arithmetic)"
PARTS = ("forward", "backward_input", "backward_weight", "sensing")


class SensingOptimizer(Protocol):
    """The part of a :class:`~gossamer.Rewirer` or :class:`~gossamer.Multilevel` that a ledger reads: its sensing."""

    @property
    def sensing(self) -> Mapping[str, int]:
        """Blocks off the support that the step in progress measures, by layer."""
        ...

    @property
    def sensing_bytes(self) -> int:
        """Bytes held for sensing."""
        ...


class Cost(NamedTuple):
    """The FLOPs of one step, by part."""

    forward: int = 0
    backward_input: int = 0
    backward_weight: int = 0
    sensing: int = 0

    @property
    def total(self) -> int:
        """The sum of the four parts."""
        return sum(self)

    def plus(self, other: "Cost") -> "Cost":
        """Sum, part by part."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Entry(NamedTuple):
    """One layer of the ledger."""

    name: str
    module: nn.Module
    positions: float  # output positions per example
    weights: int  # N; of other arithmetic the multiply-adds per example
    input_gradient: bool  # whether the backward pass needs it
    weight_gradient: bool
    holds: bool = True  # False: other arithmetic, which has no weights

    @property
    def n(self) -> int:
        """Weights kept now."""
        return self.module.support.weights if isinstance(self.module, SparseLayer) else self.weights

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass over one example, with the weights kept now."""
        return round(self.positions * self.n)

    @property
    def simulated(self) -> bool:
        """Whether dense kernels run, though the count is of sparse kernels (masked layout)."""
        return isinstance(self.module, SparseLayer) and self.module.layout.storage == "dense" and not self.follows

    @property
    def follows(self) -> bool:
        """Whether the support is where the values are not zero, with a dense weight gradient (shadow layout)."""
        return _follows(self.module)

    def cost(self, batch: int, n: int, sensed: int = 0) -> Cost:
        """FLOPs of one step in which n weights are kept and ``sensed`` weights off the support are measured."""
        of_weight = n
        if _follows(self.module):
            n, of_weight = (self.weights if n > self.module.dense_above * self.weights else n), self.weights
        one, last = round(2 * batch * self.positions * n), round(2 * batch * self.positions * of_weight)
        return Cost(
            one, one * self.input_gradient, last * self.weight_gradient, round(2 * batch * self.positions * sensed)
        )


class Ledger:
    """Counts the FLOPs and bytes of one training run.

    Args:
        model: the model, after ``sparsify``.
        example: an input batch (or a tuple of inputs); one pass in eval mode counts how often each weight is used.
        optimizer: its state is counted among the bytes.

    ``flops``: the :class:`Cost` of all steps. ``dense_flops``: FLOPs of the same steps with the dense model. ``ratio``:
    of the two. ``peak_bytes``: the most bytes of values, indices, gradients, optimizer state and sensing at any step
    (activations are not included).
    """

    def __init__(
        self, model: nn.Module, example: Tensor | tuple[Tensor, ...], *, optimizer: torch.optim.Optimizer | None = None
    ):
        self.model, self.optimizer = model, optimizer
        self.entries = _traced(model, example if isinstance(example, tuple) else (example,))
        self.flops, self.dense = Cost(), 0
        self.steps, self.examples, self.peak_bytes = 0, 0, 0
        self.by_layer = {entry.name: Cost() for entry in self.entries}
        self._peak_key: object = None  # the bytes are counted again when this changes

    def step(self, batch: int, rewirer: SensingOptimizer | None = None) -> None:
        """Records one training step over ``batch`` examples. Call it after the backward pass and before the step of the
        optimizer.

        ``rewirer``: the :class:`~gossamer.Rewirer` or :class:`~gossamer.Multilevel`, whose sensing is counted.
        """
        sensed = _sensed(rewirer)
        for entry in self.entries:
            cost = entry.cost(batch, entry.n, sensed.get(entry.name, 0) * _tile(entry.module))
            self.by_layer[entry.name] = self.by_layer[entry.name].plus(cost)
            self.flops = self.flops.plus(cost)
            self.dense += entry.cost(batch, entry.weights).total
        self.steps += 1
        self.examples += batch
        held = rewirer.sensing_bytes if rewirer is not None else 0
        # the bytes depend on nothing else; after three steps the optimizer's state exists
        key = (tuple(entry.n for entry in self.entries), held, min(self.steps, 3))
        if key != self._peak_key:
            self._peak_key = key
            self.peak_bytes = max(self.peak_bytes, self.bytes(rewirer)["total"])

    @property
    def dense_flops(self) -> int:
        """FLOPs of the same steps with the dense model."""
        return self.dense

    @property
    def ratio(self) -> float:
        """Training FLOPs divided by dense training FLOPs."""
        return self.flops.total / self.dense if self.dense else float("nan")

    @property
    def simulated(self) -> bool:
        """Whether some sparse layer runs dense kernels. The FLOPs are then not those that were executed."""
        return any(entry.simulated for entry in self.entries)

    @property
    def kept(self) -> int:
        """The number of weights of linear and convolutional layers that may be non-zero now."""
        return sum(entry.n for entry in self.entries if entry.holds)

    @property
    def weights(self) -> int:
        """The number of all weights of linear and convolutional layers."""
        return sum(entry.weights for entry in self.entries if entry.holds)

    def step_cost(self, batch: int, rewirer: SensingOptimizer | None = None) -> dict[str, Cost]:
        """FLOPs of one step with the present supports and sensing, by layer name."""
        sensed = _sensed(rewirer)
        return {e.name: e.cost(batch, e.n, sensed.get(e.name, 0) * _tile(e.module)) for e in self.entries}

    def bytes(self, rewirer: SensingOptimizer | None = None) -> dict[str, int]:
        """Bytes held now: values, indices, gradients, optimizer, sensing, total. Dense parameters are included."""
        layers = [m for m in self.model.modules() if isinstance(m, SparseLayer)]
        parts = {
            "values": sum(_size(p) for p in self.model.parameters()),
            "indices": sum(layer.index_bytes for layer in layers),
            "gradients": sum(_size(p) for p in self.model.parameters() if p.requires_grad),
            "optimizer": sum(_size(t) for state in self._states().values() for t in state.values()),
            "sensing": rewirer.sensing_bytes if rewirer is not None else 0,
        }
        return {**parts, "total": sum(parts.values())}

    def _states(self) -> dict[Tensor, dict[str, Tensor]]:
        """The tensors of the optimizer's state, by parameter and name."""
        given: Mapping[Tensor, Mapping[str, object]] = {} if self.optimizer is None else self.optimizer.state
        return {p: {k: t for k, t in state.items() if isinstance(t, Tensor)} for p, state in given.items()}

    def dense_bytes(self) -> int:
        """Bytes of values, gradients and optimizer state of the dense model with the same optimizer."""
        total, states = 0, self._states()
        dense_sizes = {id(m.values): m.dense_shape.numel() for m in self.model.modules() if isinstance(m, SparseLayer)}
        for p in self.model.parameters():
            numel = dense_sizes.get(id(p), p.numel())
            slots = sum(t.shape == p.shape for t in states.get(p, {}).values())
            total += numel * p.element_size() * (1 + int(p.requires_grad) + slots)
        return total

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        counts = {"steps": self.steps, "examples": self.examples, "peak_bytes": self.peak_bytes, "dense": self.dense}
        return {
            **counts,
            "flops": list(self.flops),
            "by_layer": {name: list(cost) for name, cost in self.by_layer.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from saved counts. Raises UsageError if they are of other layers."""
        if set(state["by_layer"]) != set(self.by_layer):
            raise UsageError("Ledger", "the saved counts are of other layers", got=list(state["by_layer"]))
        self.steps, self.examples = int(state["steps"]), int(state["examples"])
        self.peak_bytes, self.dense, self.flops = int(state["peak_bytes"]), int(state["dense"]), Cost(*state["flops"])
        self.by_layer = {name: Cost(*cost) for name, cost in state["by_layer"].items()}
        self._peak_key = None

    def table(self) -> str:
        """A table of the layers: weights kept, density, multiply-adds of a forward pass over one example, FLOPs by
        part, and the ratio to the dense FLOPs."""
        lines: list[tuple[str, ...]] = [("layer", "kept", "of", "density", "multiply-adds", *PARTS, "of dense")]
        for e in self.entries:
            cost, dense = self.by_layer[e.name], e.cost(self.examples, e.weights).total
            held = _counts(e.n, e.weights) if e.holds else ("-", "-", "-")
            lines.append(
                (e.name, *held, f"{e.multiply_adds:,}", *_flops(cost), f"{cost.total / dense:.4f}" if dense else "-")
            )
        adds = sum(e.multiply_adds for e in self.entries)
        lines.append(
            ("total", *_counts(self.kept, self.weights), f"{adds:,}", *_flops(self.flops), f"{self.ratio:.4f}")
        )
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows = [
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        note = ["FLOPs are simulated: masked layers run dense kernels"] if self.simulated else []
        return "\n".join(rows + note)


def _sensed(rewirer: SensingOptimizer | None) -> Mapping[str, int]:
    return {} if rewirer is None else rewirer.sensing


def _counts(kept: int, weights: int) -> tuple[str, str, str]:
    return f"{kept:,}", f"{weights:,}", f"{kept / weights:.4f}" if weights else "-"


def _flops(cost: Cost) -> list[str]:
    return [f"{part:.3g}" for part in cost]


def cost_model(
    method: str, f_sparse: float, f_dense: float, *, every: float = 100, window: int = 10, fraction: float = 0.1
) -> float:
    """Mean FLOPs of a training step by the published formulas (Evci et al. 2020, appendix H: backward = 2 forward).

    Args:
        method: ``dense``, ``static``, ``set``, ``snfs``, ``rigl`` or ``csst``.
        f_sparse: forward FLOPs of the sparse network.
        f_dense: forward FLOPs of the dense network.
        every: ``rigl``: plain steps between events, the iteration of the event not included. ``csst``: mean number of
            steps between events.
        window: the setting of ``csst``.
        fraction: the setting of ``csst``.
    """
    formulas = {
        "dense": 3 * f_dense,
        "static": 3 * f_sparse,
        "set": 3 * f_sparse,
        "snfs": 2 * f_sparse + f_dense,
        "rigl": (3 * f_sparse * every + 2 * f_sparse + f_dense) / (every + 1),
        "csst": 3 * f_sparse + window / every * fraction * (f_dense - f_sparse),
    }
    if method not in formulas:
        raise UsageError(
            "cost_model",
            f"no formula for {method!r}{nearest(method, formulas)}",
            remedy=f"one of {', '.join(formulas)}",
        )
    return formulas[method]


def _traced(model: nn.Module, example: tuple[Tensor, ...]) -> list[Entry]:
    """One pass over the example finds the output positions of each layer, and whether its input needs a gradient. The
    model does not change."""
    names = {m: name for name, m in named_modules(model).items() if isinstance(m, SparseLayer | nn.Linear | nn.Conv2d)}
    used: dict[nn.Module, tuple[float, bool]] = {}
    counter, inside = (
        FlopCounterMode(display=False),
        0,
    )  # inside: what the counter finds in these layers, whichever kernels run

    def enter(*_: object) -> None:
        nonlocal inside
        inside -= counter.get_total_flops()

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal inside
        features = output.shape[1] if _is_conv(module) else output.shape[-1]
        positions, needed = used.get(module, (0.0, False))
        used[module] = (positions + output.numel() / features / example[0].shape[0], needed or inputs[0].requires_grad)
        inside += counter.get_total_flops()

    handles = [m.register_forward_pre_hook(enter) for m in names] + [m.register_forward_hook(look) for m in names]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with eval_mode(model), torch.enable_grad(), counter:
            model(*(t.to(device) for t in example))
    finally:
        for handle in handles:
            handle.remove()
    entries: list[Entry] = []
    for m, name in names.items():
        if m in used:
            weight = m.values if isinstance(m, SparseLayer) else m.weight
            numel = m.dense_shape.numel() if isinstance(m, SparseLayer) else m.weight.numel()
            entries.append(Entry(name, m, used[m][0], numel, used[m][1], weight.requires_grad))
    other = (counter.get_total_flops() - inside) / example[0].shape[0]
    if other >= 1:
        entries.append(Entry(OTHER, nn.Identity(), 1.0, round(other / 2), True, True, holds=False))
    return entries


def _follows(m: nn.Module) -> TypeGuard[SparseLayer]:
    return isinstance(m, SparseLayer) and m.layout.follows


def _is_conv(m: nn.Module) -> bool:
    return isinstance(m, nn.Conv2d) or (isinstance(m, SparseLayer) and m.geometry is not None)


def _tile(m: nn.Module) -> int:
    return m.block[0] * m.block[1] if isinstance(m, SparseLayer) else 1


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()
