# pyright: strict
"""Plan: the fastest layout of each layer on this machine, by measurement, and the density below which csr is faster.

Every sparse layer, or every layer that would become sparse, is timed alone, forward and backward:

    dense               nn.Conv2d (NCHW or channels-last) or nn.Linear (batch first or last): for comparison only
    masked              dense storage and kernels with a mask, in torch's memory formats
    masked converted    the same between csr layers, which keep the network batch-last: with conversions on both sides
    csr                 sparse kernels on single weights
    csr HxW             the same with blocks of H x W, at the same density

``workload`` finds the layers and their inputs, ``measuring`` times them with ``timing``, ``break_even`` finds the
density at which csr and dense take the same time, ``choose`` selects the layouts, and ``record`` is the result.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from .._budgets import Budget
from .._errors import UsageError, check_at_least, check_count
from ..selection import Pick
from ..support import checked
from .choose import choose_layouts
from .measuring import Comparison, kernels_of, measure
from .record import Block, LayerPlan, Plan
from .timing import Timer, timed
from .workload import Input, Workload, example_of, layers_to_plan, workloads

__all__ = ["LayerPlan", "Plan", "plan"]


def plan(
    model: nn.Module,
    input_shape: Input,
    *,
    density: float | None = None,
    budget: str | Budget | Mapping[str, float] = "erk",
    block: Block = (1, 1),
    blocks: Iterable[Block] = ((1, 1), (4, 1), (16, 16)),
    include: Pick | Iterable[Pick] | None = None,
    exclude: Pick | Iterable[Pick] | None = None,
    densities: tuple[float, float] = (0.002, 0.9),
    batch_last: bool | None = None,
    dense_bytes: int = 2**30,
    threads: int | None = None,
    seconds: float = 0.1,
    rng: torch.Generator | None = None,
    timer: Timer | None = None,
) -> Plan:
    """Times every layer of a model dense, masked and csr on this machine, and chooses its layout.

    The model does not change. Layers of equal sizes, inputs and density are measured once.

    Args:
        model: a dense model, or, without ``density``, a sparse model.
        input_shape: shape of a batch, as in (128, 3, 32, 32); or a batch, a tensor or a tuple of tensors.
        density: density for :func:`~gossamer.sparsify`; None for a sparse model.
        budget: budget for :func:`~gossamer.sparsify`.
        block: block for :func:`~gossamer.sparsify`.
        blocks: blocks that are also measured in csr, if they fit into the layer.
        include, exclude: layers to replace and layers that stay dense, as for :func:`~gossamer.sparsify`.
        densities: the range (least, most) in which the break-even density is searched.
        batch_last: whether the network will be batch-last if it has csr layers. None: True on the CPU.
        dense_bytes: a layer with a larger dense weight is csr, and its dense weight is never made.
        threads: number of torch's threads during the measurement; None does not change it.
        seconds: time for each comparison; at least three rounds are measured.
        rng: generator of supports and inputs. None: a new generator; torch's random state does not change.
        timer: replaces the clock: (work, candidates) -> seconds of each candidate.

    Raises: UsageError, before the first measurement.
    """
    who = "plan"
    block, tiles = checked(who, (1, 1), block)[1], [checked(who, (1, 1), tile)[1] for tile in blocks]
    _check(who, densities, dense_bytes, seconds, threads)
    layers = layers_to_plan(who, model, density, budget, block, include, exclude)
    device = next(p.device for m in layers.modules.values() for p in m.parameters())
    batch_last = device.type == "cpu" if batch_last is None else batch_last
    rng = rng or torch.Generator().manual_seed(0)
    timer = timer or partial(timed, seconds=seconds, rng=rng)
    example = example_of(who, model, input_shape, device)
    how = Comparison(tiles, batch_last, dense_bytes, densities, timer)
    measured: dict[Workload, LayerPlan] = {}  # keys have no name, so that equal layers are measured once
    with _surroundings(threads, device):
        found = workloads(who, model, layers, block, example)
        for alike in dict.fromkeys(layer._replace(name="") for layer in found):
            measured[alike] = measure(alike, how)
        kernels = kernels_of(found, tiles, rng)
        threads = torch.get_num_threads()
    rows = choose_layouts([measured[layer._replace(name="")]._replace(name=layer.name) for layer in found])
    sizes = tuple(tuple(t.shape) for t in example)
    return Plan(tuple(rows), sizes, batch_last, threads, str(device), kernels, torch.__version__)


def _check(who: str, densities: tuple[float, float], dense_bytes: int, seconds: float, threads: int | None) -> None:
    """Raises UsageError if a setting is out of range."""
    least, most = densities
    if not 0.0 < least < most <= 1.0:
        raise UsageError(who, "densities must be a range (least, most) in (0, 1]", got=densities)
    check_count(who, "dense_bytes", dense_bytes, 1)
    check_at_least(who, "seconds", seconds, 0.0)
    if threads is not None:
        check_count(who, "threads", threads, 1)


@contextmanager
def _surroundings(threads: int | None, device: torch.device) -> Generator[None]:
    """A context in which torch uses this number of threads and records gradients. It restores the random state.

    None does not change the number of threads.
    """
    before, generators = torch.get_num_threads(), [device] if device.type == "cuda" else []
    try:
        torch.set_num_threads(threads or before)
        with torch.random.fork_rng(generators), torch.enable_grad():  # pyright: ignore[reportUnknownMemberType]  # torch has no types for it
            yield
    finally:
        torch.set_num_threads(before)
