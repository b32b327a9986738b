"""The law of checkpoints."""

# torch and safetensors leave tolist, manual_seed, safe_open without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import checkpoint
from .._errors import UsageError
from ..checkpoint.file import seal
from ..layouts import Layout
from ..topology import TopologyLike
from .details import Optimizers, demand, nesterov, same
from .runs import Rewirers, Run, resolved

Save = Callable[..., None]  # gossamer.checkpoint.save, or a function with its signature
Load = Callable[..., dict[str, Any]]  # gossamer.checkpoint.load, or a function with its signature
Edit = Callable[[dict[str, Tensor], dict[str, str]], object]  # changes a file's tensors and header


def check_checkpoint(
    topology: TopologyLike,
    rewirer: Rewirers,
    *,
    save: Save = checkpoint.save,
    load: Load = checkpoint.load,
    steps: int = 7,
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """``load`` restores a saved run bit for bit, with torch's random state, and refuses a file that does not fit.

    The law damages files in one bit, or in their structure. ``load`` must raise UsageError and change nothing. A
    ``save`` that fails must keep the old file.

    Args:
        topology: any topology; ``stop`` counts steps, or is a fraction of ``steps``.
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        save: the function that saves.
        load: the function that loads.
        steps: steps before the checkpoint.
        layout: layout of the sparse layers.
        block: block of the sparse layers.
        optimizer: makes an optimizer of parameters.

    Raises: AssertionError.
    """
    topology = resolved(topology, steps)

    def run_of(seed: int) -> Run:
        return Run(topology, rewirer, layout, block, optimizer, seed=seed)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        run = run_of(seed=0)
        run.train(1, steps)
        before = torch.get_rng_state()
        save(path, run.model, optimizer=run.optimizer, rewirer=run.rewirer, extra={"epoch": 3})
        _check_comes_back(load, path, run, run_of(seed=1), before)
        _check_failed_save(save, path, run)
        content = path.read_bytes()
        for what, spoil in _SPOILERS.items():
            bad = Path(folder) / "bad.safetensors"
            bad.write_bytes(content)
            spoil(bad)
            _check_refused(load, bad, run_of(seed=1), what)


def _check_comes_back(load: Load, path: Path, run: Run, other: Run, random: Tensor) -> None:
    """Loads the file into another run, and compares all states."""
    torch.manual_seed(12345)
    extra = load(path, other.model, optimizer=other.optimizer, rewirer=other.rewirer)
    demand(extra == {"epoch": 3}, "checkpoint: load must return the extra that was saved")
    for what, mine, theirs in zip(("model", "optimizer", "rewirer"), other.snapshot(), run.snapshot(), strict=True):
        demand(same(mine, theirs), f"checkpoint: the {what} must come back bit for bit")
    demand(torch.equal(torch.get_rng_state(), random), "checkpoint: torch's random state must come back")


def _check_failed_save(save: Save, path: Path, run: Run) -> None:
    """Saves a state that cannot be written. It must be refused, and only the old file may be there."""
    content = path.read_bytes()
    try:
        save(path, run.model, optimizer=run.optimizer, rewirer=run.rewirer, extra={"not JSON": object()})
    except (UsageError, TypeError):
        demand(path.read_bytes() == content, "checkpoint: a save that fails must leave the old file")
    else:
        raise AssertionError("checkpoint: a state that is neither tensor nor JSON must be refused")
    alone = [p.name for p in path.parent.iterdir()] == [path.name]
    demand(alone, "checkpoint: a save must leave no other file than its own")


def _check_refused(load: Load, bad: Path, victim: Run, what: str) -> None:
    """Loading a bad file must raise UsageError and change nothing."""
    untouched, random = victim.snapshot(), torch.get_rng_state()
    try:
        load(bad, victim.model, optimizer=victim.optimizer, rewirer=victim.rewirer)
    except UsageError:
        pass
    except Exception as error:  # any other exception breaks the law
        name = type(error).__name__
        raise AssertionError(f"checkpoint: {what} must be refused with UsageError, not with {name}") from error
    else:
        raise AssertionError(f"checkpoint: {what} must be refused")
    unchanged = same(victim.snapshot(), untouched) and torch.equal(torch.get_rng_state(), random)
    demand(unchanged, f"checkpoint: after {what} was refused, nothing may have changed")


# -------------------------------------------------------------------- bad files


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _edited(edit: Edit) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportGeneralTypeIssues]
            header, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}
        edit(tensors, header)
        save_file(tensors, str(path), metadata=header)
        if "digest" in header:
            seal(path)  # with a correct digest, so only a check of the structure can find the damage

    return spoil


def _flipped(place: float, bit: int) -> Callable[[Path], None]:
    """Flips one bit of the file, at a fraction of its length."""

    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)

    return spoil


def _restated(edit: Callable[[list[Any]], object]) -> Callable[[Path], None]:
    """Edits the packed state of the optimizer, a list of [key, value]."""

    def change(_tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        meta = json.loads(header["json"])
        edit(meta["states"]["optimizer"]["items"])
        header["json"] = json.dumps(meta)

    return _edited(change)


def _index(tensors: dict[str, Tensor]) -> str:
    return next(key for key in tensors if key.endswith(".col"))


def _moved_block(tensors: dict[str, Tensor], _header: dict[str, str]) -> None:
    """Moves one block to a free column of its row. The result is another valid index of the same size."""
    key = _index(tensors)
    crow, col = tensors[key.removesuffix("col") + "crow"].long(), tensors[key]
    width = int(col.max()) + 1
    for first, last in zip(crow[:-1].tolist(), crow[1:].tolist(), strict=True):
        free = sorted(set(range(width)) - set(col[first:last].tolist()))
        if last > first and free:
            col[first:last] = torch.tensor(sorted([*col[first : last - 1].tolist(), free[0]]), dtype=col.dtype)
            return


def _set(key: Callable[[dict[str, Tensor]], str], change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(tensors: dict[str, Tensor], _header: dict[str, str]) -> None:
        tensors[key(tensors)] = change(tensors[key(tensors)]).contiguous()

    return edit


def _moment(tensors: dict[str, Tensor]) -> str:
    moments = (key for key, t in tensors.items() if key.startswith("optimizer.") and t.dim())
    return next(moments, _values(tensors))  # plain SGD has no state


def _values(tensors: dict[str, Tensor]) -> str:
    return next(key for key in tensors if key.startswith("model.") and key.endswith(".values"))


_SPOILERS: dict[str, Callable[[Path], object]] = {
    "a file that was cut off": _cut,
    "a file of noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "a safetensors file that is no checkpoint": _edited(lambda _tensors, header: header.clear()),
    "a file of a newer version": _edited(lambda _tensors, header: header.update(version="999")),
    "a file without values": _edited(lambda tensors, _header: tensors.__delitem__(_values(tensors))),
    "a file without an index": _edited(lambda tensors, _header: tensors.__delitem__(_index(tensors))),
    "an index that is not sorted": _edited(_set(_index, lambda t: t.flip(0))),
    "an index out of range": _edited(_set(_index, lambda t: t + 1000)),
    "a floating index": _edited(_set(_index, lambda t: t.double())),
    "an index of other values": _edited(_moved_block),
    "values of another length": _edited(_set(_values, lambda t: t[:-1])),
    "values of another dtype": _edited(_set(_values, lambda t: t.float())),
    "a state of the optimizer of another length": _edited(_set(_moment, lambda t: t[:-1])),
    "a state of the optimizer without groups": _restated(lambda items: items.pop()),
    "a state of the optimizer that is a number": _restated(lambda items: items[0].__setitem__(1, 7)),
    "an invalid random state": _edited(_set(lambda _: "rng.torch", torch.zeros_like)),
    **{
        f"one flipped bit at {at} of the file": _flipped(at, i)
        for i, at in enumerate((0.0, 0.001, 0.02, 0.1, 0.4, 0.7, 0.999))
    },
}
