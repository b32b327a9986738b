"""Laws of topologies."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import UsageError
from ..convert.sparsify import sparsify
from ..layers import sparse_layers
from ..layouts import Layout
from ..topology import Topology, TopologyLike
from ..topology.topology import SLOTS
from .details import Optimizers, demand, nesterov, same
from .supports import check_support


class Run:
    """A tiny training run that a law can drive, copy and compare."""

    def __init__(
        self,
        topology: Topology,
        rewirer: Callable[..., Any],
        layout: str | Layout,
        block: tuple[int, int],
        optimizer: Optimizers,
        seed: int,
    ):
        rng = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            model = nn.Sequential(nn.Linear(9, 11), nn.Tanh(), nn.Linear(11, 6)).double()
        for p in model.parameters():  # biases too must differ between seeds, and not depend on torch's own generator
            nn.init.normal_(p, 0.0, 0.3, generator=rng)
        fan_in = max(1, topology.min_fan_in)
        self.model = sparsify(model, 0.4, budget="pooled", layout=layout, block=block, min_fan_in=fan_in, rng=rng)
        self.optimizer = optimizer(self.model.parameters())
        self.rewirer = rewirer(self.model, self.optimizer, topology, rng=torch.Generator().manual_seed(seed))
        self.layers = sparse_layers(self.model)
        self.at = 0

    def with_parts(self, model: Any, optimizer: Any, rewirer: Any, at: int) -> "Run":
        """The same run, in its state after step ``at``, with other parts."""
        run = copy.copy(self)
        run.model, run.optimizer, run.rewirer, run.layers, run.at = model, optimizer, rewirer, sparse_layers(model), at
        return run

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(1000 + t)
        return torch.randn(4, 9, generator=rng, dtype=torch.float64), torch.randn(
            4, 6, generator=rng, dtype=torch.float64
        )

    def backward(self, t: int, set_to_none: bool = True, passes: int = 1) -> None:
        x, y = self.batch(t)
        self.optimizer.zero_grad(set_to_none=set_to_none)
        for a, b in zip(x.chunk(passes), y.chunk(passes), strict=True):
            (F.mse_loss(self.model(a), b) / passes).backward()

    def snapshot(self) -> tuple[Any, Any, Any]:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), self.rewirer.state_dict()))

    def restore(self, snapshot: tuple[Any, Any, Any]) -> None:
        for part, state in zip((self.model, self.optimizer, self.rewirer), snapshot, strict=True):
            part.load_state_dict(copy.deepcopy(state))


def resolved(topology: TopologyLike, steps: int | None = None) -> Topology:
    """The record of a run of ``steps`` optimizer steps. Raises UsageError where ``stop`` is a fraction and ``steps`` is None."""
    found = topology.resolve(steps)
    if not isinstance(found, Topology):
        raise AssertionError(f"{topology!r}: resolve(steps) must return a Topology, not {type(found).__name__}")
    return found


def check_topology(
    topology: TopologyLike,
    rewirer: Callable[..., Any],
    *,
    steps: int | None = None,
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """One topology on a tiny run: sizes, survivors, births, sensing, places in memory, hidden randomness, the end, and resuming; that blocks
    are exchanged where the events ask for it; and that its slots in wrappers give the same run.

    Args:
        rewirer: what trains by the topology: ``gossamer.Rewirer``, or anything with its signature and methods.
        steps: how many (default: a few more than ``topology.stop``).
    """
    topology = resolved(topology, steps)
    steps = topology.stop + 3 if steps is None else steps
    run = Run(topology, rewirer, layout, block, optimizer, seed=0)
    start = {name: layer.support.n for name, layer in run.layers.items()}
    cuts: dict[str, tuple[int, tuple[Any, Any, Any]]] = {}
    asked_for = born = 0
    try:
        for t in range(1, steps + 1):
            asked_for += _asks(run, topology, t)
            changed, newborn = _checked_step(run, topology, t, start)
            born += newborn
            label = (
                "just after an event"
                if changed
                else "in the middle of a window"
                if _in_window(topology, t)
                else "on a plain step"
            )
            if label not in cuts and t < steps:
                cuts[label] = (t, run.snapshot())
    except UsageError as refusal:
        raise AssertionError(
            f"topology {topology.name!r}: must not fail in the middle of training: {refusal}"
        ) from refusal
    late = [t for t in range(topology.stop + 1, steps + 1) if topology.when(t) is not None]
    demand(not late, f"topology {topology.name!r}: no event after step {topology.stop}, but at {late}")
    demand(
        born > 0 or not asked_for,
        f"topology {topology.name!r}: {asked_for} events ask for blocks to be exchanged, and none ever grew",
    )
    end = run.snapshot()
    _check_wrapped(topology, rewirer, steps, end, (layout, block, optimizer))
    for label, (t, snapshot) in cuts.items():
        other = Run(topology, rewirer, layout, block, optimizer, seed=1)
        other.restore(snapshot)
        for later in range(t + 1, steps + 1):
            other.backward(later)
            other.rewirer.step()
        where = f"topology {topology.name!r}: a run resumed {label} (step {t})"
        demand(same(other.snapshot(), end), f"{where} must end with the same bits as one that was not interrupted")


class _Wrapped:
    """A function inside another: it does the same, and is not the same object."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _check_wrapped(
    topology: Topology, rewirer: Callable[..., Any], steps: int, end: tuple[Any, Any, Any], how: Any
) -> None:
    """Every slot in a wrapper: the run must end with the same weights, supports and optimizer state."""
    counterpart = replace(copy.deepcopy(topology), **{name: _Wrapped(getattr(topology, name)) for name in SLOTS})
    run = Run(counterpart, rewirer, *how, seed=0)
    try:
        for t in range(1, steps + 1):
            run.backward(t)
            run.rewirer.step()
    except UsageError as refusal:
        raise AssertionError(
            f"topology {topology.name!r}: its slots in wrappers fail where it does not: {refusal}"
        ) from refusal
    sentence = "its slots in wrappers must give the same run: what happens hangs on what they do, not on which objects they are"
    demand(same(run.snapshot()[:2], end[:2]), f"topology {topology.name!r}: {sentence}")


def _asks(run: Run, topology: Topology, t: int) -> bool:
    """Whether step t is to exchange a block at least in some layer that has room for one."""
    update = topology.when(t)
    if update is None:
        return False
    sizes = {name: (layer.support.n, layer.support.total) for name, layer in run.layers.items()}
    wanted = {
        name: min(update.drop_fraction * n, update.selectivity * (run.rewirer.sensing.get(name, 0) or total))
        for name, (n, total) in sizes.items()
    }
    return any(wanted[name] >= 1 and n < total for name, (n, total) in sizes.items())


def _checked_step(run: Run, topology: Topology, t: int, start: dict[str, int]) -> tuple[bool, int]:
    """One step, all laws of one step checked; whether it had an event, and how many blocks were born."""
    where = f"topology {topology.name!r}, step {t}"
    update, asked = topology.when(t), topology.sense(t)
    _check_sensing(run, asked, where)
    before = {name: layer.support for name, layer in run.layers.items()}
    places = {name: layer.values.data_ptr() for name, layer in run.layers.items()}
    young = _young(run)
    run.backward(t)
    moved, moved_optimizer = copy.deepcopy((run.model, run.optimizer))  # the same step without the event
    for mine, counterpart in zip(run.model.parameters(), moved.parameters(), strict=True):
        counterpart.grad = mine.grad  # deepcopy leaves gradients behind
    if update is None or update.step_optimizer:
        moved_optimizer.step()
    state = torch.get_rng_state()
    run.rewirer.step()
    demand(
        torch.equal(state, torch.get_rng_state()),
        f"{where}: random choices must come from the rewirer's generator, not torch's own",
    )

    last, newborn = run.rewirer.last, 0
    demand((last is None) == (update is None), f"{where}: an event must take place exactly where `when` says so")
    for (name, layer), counterpart in zip(run.layers.items(), sparse_layers(moved).values(), strict=True):
        old, new, here = before[name], layer.support, f"{where}, layer {name}"
        if update is None:
            demand(new.same(old), f"{here}: the support must not update without an event")
        else:
            check_support(new, draws=0)
        both, ids = new.find(old.ids()) >= 0, new.ids()
        born = old.find(ids) < 0
        newborn += int(born.sum())
        states = {
            "values": (layer.values, counterpart.values),
            **_pairs(run.optimizer, layer.values, moved_optimizer, counterpart.values),
        }
        for key, (mine, shadow) in states.items():
            mine, shadow = layer.layout.compact(mine.detach(), new), layer.layout.compact(shadow.detach(), old)
            demand(bool((mine[born] == 0).all()), f"{here}: {key} of a born block must be 0")
            grown = old.find(young[name]) if name in young else old.find(ids[:0])
            by_the_optimizer = torch.ones(old.n, dtype=torch.bool)  # the young ones step by themselves
            by_the_optimizer[grown[grown >= 0]] = False
            stays = by_the_optimizer[old.find(ids[~born])]
            fine = torch.equal(mine[~born][stays], shadow[both][stays])
            demand(fine, f"{here}: {key} of a block that stays must be what the optimizer made it")
        if new.n == old.n:
            demand(
                layer.values.data_ptr() == places[name],
                f"{here}: where n stays the same, the values must stay in place",
            )
        if last is not None:
            dropped, grown = last.dropped[name], last.grown[name]
            demand(
                new.n == old.n - dropped + grown == last.n[name],
                f"{here}: n must become {old.n} - {dropped} + {grown}, not {new.n}",
            )
            demand(
                int(born.sum()) <= grown and int((~both).sum()) <= dropped,
                f"{here}: the event's record must count its changes",
            )
        least = topology.min_fan_in
        demand(bool((new.crow.diff() >= least).all()), f"{here}: every output unit must keep {least} incoming blocks")
    if update is not None:
        _check_sizes(run, topology, t, start, where)
    return update is not None, newborn


def _young(run: Run) -> dict[str, Tensor]:
    """Ids of the blocks, per layer, that have a step count of their own."""
    young: dict[str, list[Tensor]] = {}
    for cohort in run.rewirer.state_dict().get("newborn", {}).get("cohorts", []):
        young.setdefault(cohort["layer"], []).append(cohort["ids"])
    return {name: torch.cat(ids) for name, ids in young.items()}


def _check_sensing(run: Run, asked: Any, where: str) -> None:
    sensing, probes = run.rewirer.sensing, run.rewirer.state_dict()["probes"]
    for name, layer in run.layers.items():
        s, zeros = layer.support, layer.support.total - layer.support.n
        m = 0
        if asked is not None:
            m = (
                zeros
                if asked.stream
                else round(asked.fraction * zeros)
                if asked.count is None
                else min(asked.count, zeros)
            )
        demand(sensing.get(name, 0) == m, f"{where}, layer {name}: must sense {m} blocks, not {sensing.get(name, 0)}")
        if name in probes:
            ids = probes[name]["ids"]
            fine = bool((s.find(ids) == -1).all()) and bool((ids.diff() > 0).all())
            demand(fine, f"{where}, layer {name}: sensed blocks must be distinct zeros")


def _check_sizes(run: Run, topology: Topology, t: int, start: dict[str, int], where: str) -> None:
    final = run.rewirer.final
    due = {name: _due(t, start[name], final[name], topology.stop) for name in start}
    now = {name: layer.support.n for name, layer in run.layers.items()}
    if topology.keeps_layer_sizes:
        for name in now:
            over = now[name] - due[name]
            fine = over == 0 or (topology.merge and over > 0 and t < topology.stop)
            demand(fine, f"{where}, layer {name}: n must be {due[name]}, not {now[name]}")
    else:
        total, held = sum(due.values()), sum(now.values())
        demand(held == total, f"{where}: the layers together must hold {total} blocks, not {held}")
        demand(min(now.values()) >= 1, f"{where}: no layer may lose its last block")


def _due(t: int, start: int, final: int, stop: int) -> int:
    """Zhu & Gupta's cubic, written out."""
    if start == final:
        return start
    return final if t >= stop else round(final + (start - final) * (1 - t / stop) ** 3)


def _in_window(topology: Topology, t: int) -> bool:
    asked = topology.sense(t + 1)
    return asked is not None and not asked.fresh


def _pairs(
    a: torch.optim.Optimizer, p: Tensor, b: torch.optim.Optimizer, q: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    mine, theirs = a.state.get(p, {}), b.state.get(q, {})
    return {key: (t, theirs[key]) for key, t in mine.items() if torch.is_tensor(t) and t.dim() > 0}
