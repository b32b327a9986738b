"""The laws of ownership: which passes a measurement counts, which state a connection has, and what copies share."""

import copy
import pickle
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .._errors import UsageError
from ..layouts import Layout
from ..topology import TopologyLike
from .details import Optimizers, demand, nesterov, same
from .runs import Rewirers, Run, resolved


def check_passes(
    topology: TopologyLike, rewirer: Rewirers, *, layout: str | Layout = "csr", optimizer: Optimizers = nesterov
) -> None:
    """Sensing counts exactly the backward passes that are in the gradient. Discarded passes have no effect.

    Args:
        topology: any topology whose ``stop`` counts steps.
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        layout: layout of the sparse layers.
        optimizer: makes an optimizer of parameters.

    Raises: AssertionError.
    """
    topology = resolved(topology)
    steps, half = topology.stop + 2, "a gradient that comes in two passes"
    plain = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
    plain.train(1, steps)
    where = f"topology {topology.name!r}, layout {layout if isinstance(layout, str) else layout.name!r}"
    for what in (*STRAY, half):
        run = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
        for t in range(1, steps + 1):
            if what in STRAY:
                STRAY[what](run, t)
            run.backward(t, set_to_none="zeroed" not in what, passes=2 if what == half else 1)
            run.rewirer.step()
        if what == half:
            alike = all(layer.support.same(plain.layers[name].support) for name, layer in run.layers.items())
            demand(alike, f"{where}: {what} must count as one")
        else:
            demand(same(run.model.state_dict(), plain.model.state_dict()), f"{where}: {what} must leave no trace")


def _input_gradient(run: Run, t: int) -> None:
    x = run.batch(100 + t)[0].requires_grad_()
    torch.autograd.grad(run.model(x).square().sum(), x)


def _thrown_away(run: Run, t: int, set_to_none: bool) -> None:
    (-run.model(run.batch(200 + t)[0]).mean()).backward()
    run.optimizer.zero_grad(set_to_none=set_to_none)


def _not_finite(run: Run, _t: int) -> None:
    x = run.batch(300)[0]
    x[0, 0] = float("inf")
    run.model(x).square().sum().backward()
    run.optimizer.zero_grad(set_to_none=True)


STRAY: dict[str, Callable[[Run, int], None]] = {  # backward passes that no step uses
    "autograd.grad": _input_gradient,
    "a pass whose gradients were set to None": lambda run, t: _thrown_away(run, t, set_to_none=True),
    "a pass whose gradients were zeroed": lambda run, t: _thrown_away(run, t, set_to_none=False),
    "a pass that is not finite, and was skipped": _not_finite,
}


# -------------------------------------------------------------------- copies


def check_copies(
    topology: TopologyLike, rewirer: Rewirers, *, layout: str | Layout = "csr", optimizer: Optimizers = nesterov
) -> None:
    """A copy or a pickle of (model, optimizer, rewirer), made at any step, continues exactly as the original.

    A copy of only the model holds no batch.

    Args:
        topology: any topology whose ``stop`` counts steps.
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        layout: layout of the sparse layers.
        optimizer: makes an optimizer of parameters.

    Raises: AssertionError.
    """
    topology = resolved(topology)
    steps, where = topology.stop + 2, f"topology {topology.name!r}"
    run = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
    copies: list[tuple[str, Run]] = []
    for t in range(1, steps + 1):
        run.backward(t)
        if t == topology.stop // 2:
            file, batch = pickle.dumps(copy.deepcopy(run.model)), run.batch(t)[0]
            demand(batch[0, :1].numpy().tobytes() not in file, f"{where}: a copy of only the model must hold no batch")
        run.rewirer.step()
        if t in {2, 3, 4, topology.stop // 2, topology.stop // 2 + 1} and t < steps:
            parts = run.model, run.optimizer, run.rewirer
            copies.append((f"a copy made after step {t}", run.with_parts(*copy.deepcopy(parts), at=t)))
            copies.append((f"a pickle made after step {t}", run.with_parts(*pickle.loads(pickle.dumps(parts)), at=t)))
    end = run.snapshot()
    for what, other in copies:
        other.train(other.at + 1, steps)
        demand(same(other.snapshot(), end), f"{where}: {what} must end in the state of the original")


# -------------------------------------------------------------------- models that are loaded again


def check_reload(
    topology: TopologyLike, rewirer: Rewirers, *, layout: str | Layout = "csr", optimizer: Optimizers = nesterov
) -> None:
    """``load_state_dict`` of an earlier state of the model works while its optimizer and rewirer continue.

    The weights are then the loaded ones. The optimizer's state follows its connections. A window in progress begins
    again, and training continues.

    Args:
        topology: any topology whose ``stop`` counts steps.
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        layout: layout of the sparse layers.
        optimizer: makes an optimizer of parameters.

    Raises: AssertionError.
    """
    topology = resolved(topology)
    steps = topology.stop + 2
    for early, late in _cuts(steps):
        run = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
        run.train(1, early)
        best: dict[str, Tensor] = copy.deepcopy(run.model.state_dict())
        run.train(early + 1, late)
        before = _dense_states(run)
        here = f"topology {topology.name!r}, the model of step {early} loaded after step {late}"
        try:
            run.model.load_state_dict(best)
            demand(same(run.model.state_dict(), best), f"{here}: its weights must be the loaded ones")
            run.rewirer.state_dict()  # makes the rewirer follow the new supports, as a step does
        except UsageError as refusal:
            raise AssertionError(f"{here}: the training must go on: {refusal}") from refusal
        for name, key, now in _entries(_dense_states(run)):
            expected = torch.where(run.layers[name].support.mask(), before[name][key], 0.0)
            demand(torch.equal(now, expected), f"{here}, layer {name}: {key} must follow its connections")
        try:
            run.train(late + 1, steps)
        except (UsageError, RuntimeError) as refusal:
            raise AssertionError(f"{here}: the training must go on: {refusal}") from refusal
        demand(all(bool(p.isfinite().all()) for p in run.model.parameters()), f"{here}: the training must go on")


def _cuts(steps: int) -> list[tuple[int, int]]:
    """(early, late) pairs of steps: across one event, across several, within a window, at the end."""
    third = max(1, steps // 3)
    cuts = [(third, steps - 1), (1, steps // 2), (steps // 2 - 1, steps // 2), (third, third + 1)]
    return [(early, late) for early, late in cuts if 1 <= early <= late]


def _dense_states(run: Run) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state of every layer as dense matrices, zero off the support."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, layer in run.layers.items():
        s, states = layer.support, run.optimizer.state.get(layer.values, {})
        found[name] = {}
        for key, t in states.items():
            if torch.is_tensor(t) and t.dim() > 0:
                dense = t.new_zeros(s.shape)
                dense.view(-1)[s.ids()] = layer.layout.compact(t, s)
                found[name][key] = dense
    return found


def _entries(states: dict[str, dict[str, Tensor]]) -> Iterator[tuple[str, str, Tensor]]:
    return ((name, key, t) for name, entries in states.items() for key, t in entries.items())
