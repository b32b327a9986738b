"""The saved state of a probe, and the checks of a saved state of a Rewirer.

A state may come from any file, so everything in it is verified. Problems are reported as sentences.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..layers import SparseLayer
from ..products.sense import reference as csr_sense
from ..support import Support
from ..topology import Topology
from .sensing import Probe
from .states import is_count, is_dict

STATE = ("t", "topology", "settings", "start", "final", "rng", "supports", "fed", "newborn", "probes")
PROBE = ("ids", "steps", "mean", "active_mean", "flow")


def is_ids(ids: object) -> TypeGuard[Tensor]:
    """Whether ``ids`` is a vector of int64."""
    return isinstance(ids, Tensor) and ids.dim() == 1 and ids.dtype == torch.int64


def rewirer_problems(
    state: object, topology: Topology, layers: Mapping[str, SparseLayer], rng: torch.Generator
) -> list[str]:
    """Why a saved state of a Rewirer cannot be loaded, in sentences; [] if it can. Newborn are not checked here."""
    if not is_dict(state) or not set(STATE) <= set(state):
        return [f"a state of a Rewirer has {', '.join(STATE)}"]
    here, there = topology.settings(), state["settings"]
    other = f"it does not belong to topology {topology.name!r} on layers {list(layers)}"
    if state["topology"] != topology.name:
        return [f"{other}: it is of topology {state['topology']!r}"]
    parts = [state[key] for key in ("settings", "probes", "start", "final", "supports", "fed")]
    if any(not is_dict(part) for part in parts) or any(set(part) != set(layers) for part in parts[2:]):
        return [f"{other}: it is of other layers"]
    problems = [f"{key} was {there.get(key)}, but is now {here[key]}" for key in here if here[key] != there.get(key)]
    counts = [state["t"], *state["start"].values(), *state["final"].values(), *state["supports"].values()]
    if not all(is_count(v) for v in counts):
        problems.append("t, start, final and supports must be whole numbers of at least 0")
    saved = state["rng"]
    if not torch.is_tensor(saved) or saved.dtype != torch.uint8 or saved.shape != rng.get_state().shape:
        problems.append("rng is the state of a random generator of another kind")
    if not all(isinstance(fed, bool) for fed in state["fed"].values()):
        problems.append("fed must hold True or False for every layer")
    if problems or not state["probes"]:
        return problems
    trained = {name for name, layer in layers.items() if layer.values.requires_grad}
    if topology.sense(state["t"] + 1) is None or not set(state["probes"]) <= trained:
        return ["its probes are of other layers, or of a step without sensing"]
    for name, probe in state["probes"].items():
        s = layers[name].adopted
        problems += probe_problems(name, probe, s, present=s.tag == state["supports"][name])
    return problems


def probe_state(probe: Probe) -> dict[str, Any]:
    """The fields of a probe that a resumed run needs."""
    return {key: getattr(probe, key) for key in PROBE}


def sensed_blocks(probe: Probe) -> int:
    """The number of blocks off the support that a step measures."""
    s = probe.support
    return s.total - s.n if probe.sense.stream else probe.ids.numel()


def held_bytes(probe: Probe) -> int:
    """Bytes held: ids and averages; when streaming, the operands and the rows of the gradient made at a time."""
    held = [t for t in (probe.ids, probe.mean, probe.active_mean) if t is not None]
    layer = probe.layer
    rows = min(csr_sense.SLAB_NUMBERS, layer.dense_shape.numel()) * layer.values.element_size()
    streamed = rows if probe.sense.stream else 0
    return sum(t.numel() * t.element_size() for t in held) + probe.observer.bytes + streamed


def probe_problems(name: str, state: object, s: Support, present: bool = True) -> list[str]:
    """What is wrong with the saved state of a probe, in sentences; [] if it fits the support.

    Args:
        present: whether the probe was saved with the support ``s``, or with another support of the same matrix.
    """
    if not is_dict(state) or set(state) != set(PROBE):
        return [f"{name}: the state of a window must have {', '.join(PROBE)}"]
    ids, steps, tile = state["ids"], state["steps"], () if s.block == (1, 1) else s.block
    if not is_ids(ids) or not isinstance(steps, int) or steps < 0:
        return [f"{name}: ids must be a vector of int64, and steps a whole number of at least 0"]
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= s.total or bool((ids.diff() <= 0).any())):
        return [f"{name}: sensed ids must lie in [0, {s.total}) and increase"]
    problems: list[str] = []
    if present and bool((s.find(ids.to(s.col.device)) >= 0).any()):
        problems.append(f"{name}: the sensed ids must lie off the support")
    for key, n in (("mean", ids.numel()), ("active_mean", s.n if present else None)):
        if state[key] is not None and not _is_gradient(state[key], n, tile):
            count = "as many" if n is None else n
            problems.append(f"{name}: {key} must hold {count} finite gradients as there are blocks")
    flow: Any = state["flow"]
    sizes = [(grid,) for grid in s.grid]
    if flow is not None and not (
        isinstance(flow, (tuple, list)) and [tuple(getattr(t, "shape", ())) for t in flow] == sizes  # type: ignore[reportUnknownVariableType]
    ):
        problems.append(f"{name}: flow must be a vector for the rows and one for the columns")
    return problems


def _is_gradient(t: Any, n: int | None, tile: tuple[int, ...]) -> bool:
    """Whether it holds a finite gradient for each of ``n`` blocks (of any number where None)."""
    if not torch.is_tensor(t) or not t.is_floating_point() or not t.dim():
        return False
    return t.shape[1:] == tile and n in (None, t.shape[0]) and bool(t.isfinite().all())
