"""The law of topologies."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._errors import UsageError
from ..layers import SparseLayer, sparse_layers
from ..layouts import Layout
from ..support import Support
from ..topology import Sensing, Topology, TopologyLike, Update
from ..topology.topology import SLOTS
from .details import Optimizers, demand, nesterov, same
from .runs import Rewirers, Run, Snapshot, resolved
from .supports import check_support


def check_topology(
    topology: TopologyLike,
    rewirer: Rewirers,
    *,
    steps: int | None = None,
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """A topology on a tiny run: sizes, carried values, births, sensing, memory, random numbers, the last event.

    Events that request an exchange exchange blocks. An interrupted and resumed run ends with the same bits. Wrappers
    around the slots give the same run.

    Args:
        topology: any topology; ``stop`` counts steps, or is a fraction of ``steps``.
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        steps: steps of the run; None is a few more than ``stop``.
        layout: layout of the sparse layers.
        block: block of the sparse layers.
        optimizer: makes an optimizer of parameters.

    Raises: AssertionError; UsageError if ``stop`` is a fraction and ``steps`` is None.
    """
    topology = resolved(topology, steps)
    steps = topology.stop + 3 if steps is None else steps
    run, who = Run(topology, rewirer, layout, block, optimizer, seed=0), f"topology {topology.name!r}"
    start = {name: layer.support.n for name, layer in run.layers.items()}
    cuts: dict[str, tuple[int, Snapshot]] = {}
    asked_for = born = 0
    try:
        for t in range(1, steps + 1):
            asked_for += _asks_for_exchange(run, topology, t)
            event, newborn = _checked_step(run, topology, t, start)
            born += newborn
            label = _kind_of_step(topology, t, event)
            if label not in cuts and t < steps:
                cuts[label] = (t, run.snapshot())
    except UsageError as refusal:
        raise AssertionError(f"{who}: must not fail in the middle of training: {refusal}") from refusal
    late = [t for t in range(topology.stop + 1, steps + 1) if topology.when(t) is not None]
    demand(not late, f"{who}: no event after step {topology.stop}, but at {late}")
    what = f"{asked_for} events request an exchange of blocks, and no block grew"
    demand(born > 0 or not asked_for, f"{who}: {what}")
    end = run.snapshot()
    _check_wrapped(topology, rewirer, steps, end, (layout, block, optimizer))
    for label, (t, snapshot) in cuts.items():
        other = Run(topology, rewirer, layout, block, optimizer, seed=1)
        other.restore(snapshot)
        other.train(t + 1, steps)
        where = f"{who}: a run resumed {label} (step {t})"
        demand(same(other.snapshot(), end), f"{where} must end with the same bits as an uninterrupted run")


def _kind_of_step(topology: Topology, t: int, event: bool) -> str:
    """The position in the schedule after step t, as text."""
    if event:
        return "just after an event"
    asked = topology.sense(t + 1)
    return "in the middle of a window" if asked is not None and not asked.fresh else "on a plain step"


def _asks_for_exchange(run: Run, topology: Topology, t: int) -> bool:
    """Whether step t must exchange at least one block, in some layer with room for it."""
    update = topology.when(t)
    if update is None:
        return False
    for name, layer in run.layers.items():
        n, total = layer.support.n, layer.support.total
        most = update.selectivity * (run.rewirer.sensing.get(name, 0) or total)
        if n < total and min(update.drop_fraction * n, most) >= 1:
            return True
    return False


class _Wrapped:
    """A wrapper around a function: another object with the same effect."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _check_wrapped(
    topology: Topology,
    rewirer: Rewirers,
    steps: int,
    end: Snapshot,
    how: tuple[str | Layout, tuple[int, int], Optimizers],
) -> None:
    """Checks that wrappers around all slots give the same weights, supports and optimizer state."""
    slots: dict[str, Any] = {name: _Wrapped(getattr(topology, name)) for name in SLOTS}
    run = Run(replace(copy.deepcopy(topology), **slots), rewirer, *how, seed=0)
    who = f"topology {topology.name!r}: its slots in wrappers"
    try:
        run.train(1, steps)
    except UsageError as refusal:
        raise AssertionError(f"{who} fail, and without wrappers it does not: {refusal}") from refusal
    equal = same(run.snapshot()[:2], end[:2])
    demand(equal, f"{who} must give the same run: the identity of a slot must not matter")


# -------------------------------------------------------------------- one step


def _checked_step(run: Run, topology: Topology, t: int, start: dict[str, int]) -> tuple[bool, int]:
    """Takes one step and checks it. Returns whether it had an event, and the number of newborn blocks."""
    where = f"topology {topology.name!r}, step {t}"
    update = topology.when(t)
    _check_sensing(run, topology.sense(t), where)
    before = {name: (layer.support, layer.values.data_ptr()) for name, layer in run.layers.items()}
    young = _young(run)
    run.backward(t)
    plain, plain_optimizer = copy.deepcopy((run.model, run.optimizer))  # takes the same step without the event
    for mine, other in zip(run.model.parameters(), plain.parameters(), strict=True):
        other.grad = mine.grad  # deepcopy does not copy gradients
    if update is None or update.step_optimizer:
        plain_optimizer.step()
    state = torch.get_rng_state()
    run.rewirer.step()
    untouched = torch.equal(state, torch.get_rng_state())
    demand(untouched, f"{where}: random choices must come from the rewirer's generator, not from torch's")
    event = run.rewirer.last is not None
    demand(event == (update is not None), f"{where}: an event must take place exactly where `when` returns an Update")

    newborn = 0
    for (name, layer), other in zip(run.layers.items(), sparse_layers(plain).values(), strict=True):
        here = f"{where}, layer {name}"
        old, place = before[name]
        _check_support_of(layer, old, place, update, topology, here)
        states = {"values": (layer.values.detach(), other.values.detach())}
        states |= _pairs(run.optimizer, layer.values, plain_optimizer, other.values)
        born = old.find(layer.support.ids()) < 0
        _check_states(layer, old, states, born, young.get(name), here)
        if event:
            _check_record(run.rewirer.last, name, old, layer.support, here)
        newborn += int(born.sum())
    if event:
        _check_sizes(run, topology, t, start, where)
    return event, newborn


def _check_support_of(
    layer: SparseLayer, old: Support, place: int, update: Update | None, topology: Topology, where: str
) -> None:
    """Checks the support after a step. Without an event it is unchanged. If n is unchanged, so is the memory."""
    new, least = layer.support, topology.min_fan_in
    if update is None:
        demand(new.same(old), f"{where}: the support must not change without an event")
    else:
        check_support(new, draws=0)
    if new.n == old.n:
        stays = layer.values.data_ptr() == place
        demand(stays, f"{where}: if n does not change, the values must stay in place")
    demand(bool((new.crow.diff() >= least).all()), f"{where}: every output unit must keep {least} incoming blocks")


def _check_states(
    layer: SparseLayer,
    old: Support,
    states: dict[str, tuple[Tensor, Tensor]],
    born: Tensor,
    young: Tensor | None,
    where: str,
) -> None:
    """Checks values and optimizer state: 0 for newborn blocks, the result of the optimizer for all others.

    Args:
        layer: the layer after the step.
        old: its support before the step.
        states: name -> (the state after the step, the state after the same step without the event).
        born: the newborn blocks.
        young: ids of the blocks with their own step count; the optimizer does not step them.
        where: the beginning of messages.
    """
    new = layer.support
    ids = new.ids()
    by_the_optimizer = torch.ones(old.n, dtype=torch.bool)
    if young is not None:
        grown = old.find(young)
        by_the_optimizer[grown[grown >= 0]] = False
    stays, both = by_the_optimizer[old.find(ids[~born])], new.find(old.ids()) >= 0
    for key, (mine, expected) in states.items():
        mine, expected = layer.layout.compact(mine, new), layer.layout.compact(expected, old)
        demand(bool((mine[born] == 0).all()), f"{where}: {key} of a born block must be 0")
        equal = torch.equal(mine[~born][stays], expected[both][stays])
        demand(equal, f"{where}: {key} of a block that stays must be the result of the optimizer")


def _check_record(last: Any, name: str, old: Support, new: Support, where: str) -> None:
    """Checks the numbers in the record of the event."""
    dropped, grown = last.dropped[name], last.grown[name]
    size = old.n - dropped + grown
    demand(new.n == size == last.n[name], f"{where}: n must become {old.n} - {dropped} + {grown}, not {new.n}")
    born, gone = (int((a.find(b.ids()) < 0).sum()) for a, b in ((old, new), (new, old)))
    demand(born <= grown and gone <= dropped, f"{where}: the event's record must count its changes")


def _young(run: Run) -> dict[str, Tensor]:
    """Ids of the blocks of each layer with their own step count."""
    young: dict[str, list[Tensor]] = {}
    for cohort in run.rewirer.state_dict().get("newborn", {}).get("cohorts", []):
        young.setdefault(cohort["layer"], []).append(cohort["ids"])
    return {name: torch.cat(ids) for name, ids in young.items()}


def _check_sensing(run: Run, asked: Sensing | None, where: str) -> None:
    """Checks that the requested number of distinct zeros is sensed."""
    sensing, probes = run.rewirer.sensing, run.rewirer.state_dict()["probes"]
    for name, layer in run.layers.items():
        s, zeros = layer.support, layer.support.total - layer.support.n
        if asked is None:
            m = 0
        elif asked.stream:
            m = zeros
        else:
            m = round(asked.fraction * zeros) if asked.count is None else min(asked.count, zeros)
        found = sensing.get(name, 0)
        demand(found == m, f"{where}, layer {name}: must sense {m} blocks, not {found}")
        if name in probes:
            ids = probes[name]["ids"]
            fine = bool((s.find(ids) == -1).all()) and bool((ids.diff() > 0).all())
            demand(fine, f"{where}, layer {name}: sensed blocks must be distinct zeros")


def _check_sizes(run: Run, topology: Topology, t: int, start: dict[str, int], where: str) -> None:
    """Checks the sizes of the supports after an event."""
    final: dict[str, int] = run.rewirer.final
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
    """The cubic schedule of Zhu & Gupta (2017)."""
    if start == final:
        return start
    return final if t >= stop else round(final + (start - final) * (1 - t / stop) ** 3)


def _pairs(
    a: torch.optim.Optimizer, p: Tensor, b: torch.optim.Optimizer, q: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The tensors in the states of two optimizers that have at least one dimension."""
    mine, theirs = a.state.get(p, {}), b.state.get(q, {})
    return {key: (t, theirs[key]) for key, t in mine.items() if torch.is_tensor(t) and t.dim() > 0}
