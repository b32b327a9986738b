"""Laws of ownership: what belongs to a support, a gradient or a connection stays with it, whatever the loop around the training does."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import UsageError
from ..layers import SparseLinear, sparse_layers
from ..layouts import Layout
from ..topology import SET, Topology, TopologyLike
from ..training.average import AveragedModel
from .details import Optimizers, close, demand, nesterov, same
from .topologies import Run, resolved

STRAY: dict[str, Callable[[Run, int], None]] = {
    "autograd.grad": lambda run, t: _input_gradient(run, t),
    "a pass whose gradients were set to None": lambda run, t: _foreign(run, t, set_to_none=True),
    "a pass whose gradients were zeroed": lambda run, t: _foreign(run, t, set_to_none=False),
    "a pass that is not finite, and was skipped": lambda run, t: _skipped(run),
}


def check_passes(
    topology: TopologyLike, rewirer: Callable[..., Any], *, layout: str | Layout = "csr", optimizer: Optimizers = nesterov
) -> None:
    """What is sensed counts exactly the passes that are in the gradient: those that were thrown away leave no trace.

    Args:
        rewirer: ``gossamer.Rewirer``, or anything with its signature and methods.
    """
    topology = resolved(topology)
    steps, half = topology.stop + 2, "a gradient that comes in two passes"
    plain = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
    for t in range(1, steps + 1):
        plain.backward(t)
        plain.rewirer.step()
    for what in (*STRAY, half):
        run = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
        for t in range(1, steps + 1):
            if what in STRAY:
                STRAY[what](run, t)
            run.backward(t, set_to_none="zeroed" not in what, passes=2 if what == half else 1)
            run.rewirer.step()
        where = f"topology {topology.name!r}, layout {layout if isinstance(layout, str) else layout.name!r}"
        if what == half:
            alike = all(layer.support.same(plain.layers[name].support) for name, layer in run.layers.items())
            demand(alike, f"{where}: {what} must count as one")
        else:
            demand(same(run.model.state_dict(), plain.model.state_dict()), f"{where}: {what} must leave no trace")


def check_copies(
    topology: TopologyLike, rewirer: Callable[..., Any], *, layout: str | Layout = "csr", optimizer: Optimizers = nesterov
) -> None:
    """A copy, or a pickle, of (model, optimizer, rewirer) goes the same way, from any step; a copy of the model alone holds no batch."""
    topology = resolved(topology)
    steps, where = topology.stop + 2, f"topology {topology.name!r}"
    run = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
    copies: list[tuple[str, Run]] = []
    for t in range(1, steps + 1):
        run.backward(t)
        if t == topology.stop // 2:
            file, batch = pickle.dumps(copy.deepcopy(run.model)), run.batch(t)[0]
            demand(batch[0, :1].numpy().tobytes() not in file, f"{where}: a copy of the model alone must hold no batch")
        run.rewirer.step()
        if t in {2, 3, 4, topology.stop // 2, topology.stop // 2 + 1} and t < steps:
            parts = run.model, run.optimizer, run.rewirer
            copies.append((f"a copy made after step {t}", run.with_parts(*copy.deepcopy(parts), at=t)))
            copies.append((f"a pickle made after step {t}", run.with_parts(*pickle.loads(pickle.dumps(parts)), at=t)))
    end = run.snapshot()
    for what, other in copies:
        for t in range(other.at + 1, steps + 1):
            other.backward(t)
            other.rewirer.step()
        demand(same(other.snapshot(), end), f"{where}: {what} must go the way of the original")


def check_reload(
    topology: TopologyLike, rewirer: Callable[..., Any], *, layout: str | Layout = "csr", optimizer: Optimizers = nesterov
) -> None:
    """``load_state_dict`` of an earlier model under a living optimizer and rewirer: weights are the loaded ones, the optimizer's state
    follows its connections, a window in progress begins anew, and the training goes on."""
    topology = resolved(topology)
    steps, where = topology.stop + 2, f"topology {topology.name!r}"
    for early, late in _cuts(topology, steps):
        run = Run(topology, rewirer, layout, (1, 1), optimizer, seed=0)
        best: dict[str, Tensor] = {}
        for t in range(1, late + 1):
            run.backward(t)
            run.rewirer.step()
            if t == early:
                best = copy.deepcopy(run.model.state_dict())
        before = _dense_states(run)
        here = f"{where}, the model of step {early} loaded after step {late}"
        try:
            run.model.load_state_dict(best)
            demand(same(run.model.state_dict(), best), f"{here}: its weights must be the loaded ones")
            run.rewirer.state_dict()  # a look at the layers, as a step takes it
        except UsageError as refusal:
            raise AssertionError(f"{here}: the training must go on: {refusal}") from refusal
        for name, states in _dense_states(run).items():
            mask = run.layers[name].support.mask()
            for key, t in states.items():
                old = before[name][key]
                demand(
                    torch.equal(t, torch.where(mask, old, 0.0)),
                    f"{here}, layer {name}: {key} must follow its connections",
                )
        try:
            for t in range(late + 1, steps + 1):
                run.backward(t)
                run.rewirer.step()
        except (UsageError, RuntimeError) as refusal:
            raise AssertionError(f"{here}: the training must go on: {refusal}") from refusal
        demand(all(bool(p.isfinite().all()) for p in run.model.parameters()), f"{here}: the training must go on")


def check_average(
    rewirer: Callable[..., Any],
    average: Callable[..., Any] = AveragedModel,
    *,
    topology: TopologyLike | None = None,
    layout: str | Layout = "csr",
) -> None:
    """An average of weights follows connections: it equals the average of the dense weights on the present support, for every connection
    that has not left and come back; the rest of the model is averaged as torch averages it.

    Args:
        rewirer: ``gossamer.Rewirer``, or anything with its signature and methods.
        average: ``gossamer.AveragedModel``, or anything with its signature and methods.
    """
    topology = resolved(topology or SET(stop=20, every=2, drop_fraction=0.5))
    for decay in (None, 0.7):
        run = Run(topology, rewirer, layout, (1, 1), nesterov, seed=0)
        mean = average(run.model, decay=decay)
        dense: dict[str, Tensor] = {}
        gone = {name: torch.zeros(layer.support.shape, dtype=torch.bool) for name, layer in run.layers.items()}
        for t in range(1, topology.stop + 1):
            before = {name: layer.support.mask() for name, layer in run.layers.items()}
            run.backward(t)
            run.rewirer.step()
            mean.update_parameters(run.model)
            for name, now in _dense_weights(run.model).items():
                share = 1.0 if t == 1 else 1 / t if decay is None else 1 - decay
                dense[name] = now if t == 1 else dense[name] + share * (now - dense[name])
            for name, layer in run.layers.items():
                gone[name] |= before[name] & ~layer.support.mask()
        try:
            held = _dense_weights(mean.module)
        except UsageError as refusal:
            raise AssertionError(
                f"topology {topology.name!r}, decay {decay}: the average is none of this model: {refusal}"
            ) from refusal
        for name, expected in dense.items():
            got, where = held[name], f"topology {topology.name!r}, decay {decay}, {name}"
            if name in run.layers:
                here = run.layers[name].support
                sure = here.mask() & ~gone[name]
                demand(
                    mean.module.get_submodule(name).support.same(here),
                    f"{where}: the average must have the present support",
                )
                got, expected = got.view(here.shape)[sure], expected.view(here.shape)[sure]
            close(got, expected, f"{where}: must be the average of the dense weights", 1e-9)


def check_newborn(
    rewirer: Callable[..., Any],
    optimizer: Optimizers = nesterov,
    *,
    newborn: str = "fresh",
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    age: int = 30,
) -> None:
    """The first five steps of a newborn connection are those of a fresh parameter, within one per cent; survivors keep their own state.

    Args:
        age: steps before the birth.
    """
    net = nn.Sequential(
        SparseLinear(8, 8, density=0.3, layout=layout, block=block, bias=False, rng=torch.Generator().manual_seed(0))
    )
    layer: Any = net[0]
    opt = optimizer(net.parameters())
    trainer = rewirer(
        net,
        opt,
        SET(stop=1000 * age, every=age, drop_fraction=0.5),
        rng=torch.Generator().manual_seed(0),
        newborn=newborn,
    )
    x = torch.full((1, 8), 0.1)
    for t in range(age + 5):
        if t == age:
            born = (layer.to_dense() == 0) & layer.support.mask()
            demand(bool(born.any()), "the law needs a birth: an event that exchanges connections")
            fresh = nn.Parameter(torch.zeros(1, *(() if block == (1, 1) else block)))
            alone = optimizer([fresh])
        before = layer.to_dense()
        opt.zero_grad(set_to_none=True)
        net(x).sum().backward()  # every weight has the gradient 0.1
        trainer.step()
        if t >= age:
            start = fresh.detach().clone()
            fresh.grad = torch.full_like(fresh, 0.1)
            alone.step()
            expected = float((fresh.detach() - start).flatten()[0])
            moved = (layer.to_dense() - before)[born]
            worst = float((moved - expected).abs().max())
            demand(
                worst <= 0.01 * abs(expected),
                f"newborn={newborn!r}: step {t - age + 1} of a newborn must be that of a fresh parameter",
            )


# -------------------------------------------------------------------- details


def _input_gradient(run: Run, t: int) -> None:
    x = run.batch(100 + t)[0].requires_grad_()
    torch.autograd.grad(run.model(x).square().sum(), x)


def _foreign(run: Run, t: int, set_to_none: bool) -> None:
    (-run.model(run.batch(200 + t)[0]).mean()).backward()
    run.optimizer.zero_grad(set_to_none=set_to_none)


def _skipped(run: Run) -> None:
    x = run.batch(300)[0]
    x[0, 0] = float("inf")
    run.model(x).square().sum().backward()
    run.optimizer.zero_grad(set_to_none=True)


def _cuts(topology: Topology, steps: int) -> list[tuple[int, int]]:
    """(early, late) pairs of steps: over one event, over several, within a window, at the end."""
    third = max(1, steps // 3)
    cuts = [(third, steps - 1), (1, steps // 2), (steps // 2 - 1, steps // 2), (third, third + 1)]
    return [(early, late) for early, late in cuts if 1 <= early <= late]


def _dense_weights(model: nn.Module) -> dict[str, Tensor]:
    layers = sparse_layers(model)
    weights = {name: layer.to_dense().flatten(1).clone() for name, layer in layers.items()}
    values = {f"{name}.values" if name else "values" for name in layers}
    return {**weights, **{name: p.detach().clone() for name, p in model.named_parameters() if name not in values}}


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
