# pyright: strict
"""Plan: the layout in which each layer runs fastest on this machine, by measurement, and the density below which
sparse kernels win.

Every layer that is sparse, or would be, is timed alone at its sizes and density, forward and backward:

    dense               nn.Conv2d (NCHW or channels-last) or nn.Linear (batch first or last): the yardstick, not chosen
    masked              dense storage and kernels under a mask, in torch's own formats
    masked converted    the same between csr layers, which keep the network batch-last: with conversions on both sides
    csr                 sparse kernels on single weights
    csr HxW             the same with tiles of H x W, at the same density

The package: ``workload`` finds the layers and their inputs, ``measure`` times them by ``timing``, ``break_even`` finds
the density where csr and dense take the same time, ``choose`` picks the layouts, ``record`` is the result.
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
    """Measures every layer of a model dense, masked and csr on this machine, and chooses its layout. The model is left
    as it was.

    Args:
        model: a dense model; ``density``, ``budget``, ``block``, ``include`` and ``exclude`` say what
            :func:`~gossamer.sparsify` would make sparse. Or, without ``density``, a sparse model, which is measured as
            it is.
        input_shape: of a whole batch, the batch first: (128, 3, 32, 32). Or a batch itself, a tensor or a tuple of
            tensors.
        blocks: also measured under csr, where they fit into the layer.
        densities: the range, (least, most), in which the break-even density is looked for.
        batch_last: whether the network will be kept batch-last if it has csr layers (None: on the CPU).
        dense_bytes: a layer whose dense weight is larger is csr; its dense weight is never made.
        threads: number of torch's threads during the measurement; None: unchanged.
        seconds: for each comparison; at least three rounds are measured. Layers of equal sizes, input and density are
            measured once.
        rng: of the supports and inputs measured. None: a new generator; torch's random state is not touched.
        timer: replaces the clock: (work, candidates) -> seconds of each candidate.

    Raises: UsageError, before anything is measured.
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
    measured: dict[Workload, LayerPlan] = {}  # by workload without its name: equal layers are measured once
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
    """Refuses settings out of range."""
    least, most = densities
    if not 0.0 < least < most <= 1.0:
        raise UsageError(who, "densities is the range to look in, (least, most) in (0, 1]", got=densities)
    check_count(who, "dense_bytes", dense_bytes, 1)
    check_at_least(who, "seconds", seconds, 0.0)
    if threads is not None:
        check_count(who, "threads", threads, 1)


@contextmanager
def _surroundings(threads: int | None, device: torch.device) -> Generator[None]:
    """Inside, torch runs on this number of threads (None: unchanged), records gradients, and keeps its random state
    for afterwards."""
    before, generators = torch.get_num_threads(), [device] if device.type == "cuda" else []
    try:
        torch.set_num_threads(threads or before)
        with torch.random.fork_rng(generators), torch.enable_grad():  # pyright: ignore[reportUnknownMemberType]  # torch has no types for it
            yield
    finally:
        torch.set_num_threads(before)
