"""Laws of checkpoints."""

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
from .topologies import Run, resolved


def check_checkpoint(
    topology: TopologyLike,
    rewirer: Callable[..., Any],
    *,
    save: Callable[..., None] = checkpoint.save,
    load: Callable[..., dict[str, Any]] = checkpoint.load,
    steps: int = 7,
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """A saved run comes back bit for bit, torch's random state too; a file that is damaged, by one bit or in its structure, or does not fit
    is refused, and nothing has changed then; a save that fails leaves the old file.
    """
    topology = resolved(topology, steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        run = Run(topology, rewirer, layout, block, optimizer, seed=0)
        for t in range(1, steps + 1):
            run.backward(t)
            run.rewirer.step()
        parts = {"optimizer": run.optimizer, "rewirer": run.rewirer}
        before = torch.get_rng_state()
        save(path, run.model, **parts, extra={"epoch": 3})
        saved = run.snapshot()

        other = Run(topology, rewirer, layout, block, optimizer, seed=1)
        torch.manual_seed(12345)
        extra = load(path, other.model, optimizer=other.optimizer, rewirer=other.rewirer)
        demand(extra == {"epoch": 3}, "checkpoint: load must return the extra that was saved")
        for what, mine, theirs in zip(("model", "optimizer", "rewirer"), other.snapshot(), saved, strict=True):
            demand(same(mine, theirs), f"checkpoint: the {what} must come back bit for bit")
        demand(torch.equal(torch.get_rng_state(), before), "checkpoint: torch's random state must come back")

        content = path.read_bytes()
        try:
            save(path, run.model, **parts, extra={"not JSON": object()})
        except (UsageError, TypeError):
            demand(path.read_bytes() == content, "checkpoint: a save that fails must leave the old file")
        else:
            raise AssertionError("checkpoint: a state that is neither tensor nor JSON must be refused")
        demand(
            [p.name for p in path.parent.iterdir()] == [path.name],
            "checkpoint: a save must leave nothing behind but its file",
        )

        for what, spoil in _SPOILERS.items():
            bad = Path(folder) / "bad.safetensors"
            bad.write_bytes(content)
            spoil(bad)
            victim = Run(topology, rewirer, layout, block, optimizer, seed=1)
            untouched, random = victim.snapshot(), torch.get_rng_state()
            try:
                load(bad, victim.model, optimizer=victim.optimizer, rewirer=victim.rewirer)
            except UsageError:
                pass
            except Exception as error:
                raise AssertionError(
                    f"checkpoint: {what} must be refused with UsageError, not with {type(error).__name__}"
                ) from error
            else:
                raise AssertionError(f"checkpoint: {what} must be refused")
            unchanged = same(victim.snapshot(), untouched) and torch.equal(torch.get_rng_state(), random)
            demand(unchanged, f"checkpoint: after {what} was refused, nothing may have changed")


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _edited(edit: "Edit") -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with safe_open(str(path), "pt") as file:  # pyright: ignore[reportGeneralTypeIssues]
            header, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}
        edit(tensors, header)
        save_file(tensors, str(path), metadata=header)
        if "digest" in header:
            seal(path)  # as if it had been written so: the structure itself must be looked at

    return spoil


def _flipped(share: float, bit: int) -> Callable[[Path], None]:
    """One bit of the file is another, ``share`` of the way through it."""

    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1 << bit
        path.write_bytes(content)

    return spoil


def _restated(edit: Callable[[list[Any]], None]) -> Callable[[Path], None]:
    """The packed state of the optimizer, a list of [key, value], is another."""

    def change(_tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        meta = json.loads(header["json"])
        edit(meta["states"]["optimizer"]["items"])
        header["json"] = json.dumps(meta)

    return _edited(change)


def _index(tensors: dict[str, Tensor]) -> str:
    return next(key for key in tensors if key.endswith(".col"))


def _moved_unit(tensors: dict[str, Tensor], _header: dict[str, str]) -> None:
    """Another valid index of the same size: one block moves to a free column of its row."""
    key = _index(tensors)
    crow, col = tensors[key.removesuffix("col") + "crow"].long(), tensors[key]
    width = int(col.max()) + 1
    for first, last in zip(crow[:-1].tolist(), crow[1:].tolist(), strict=True):
        free = sorted(set(range(width)) - set(col[first:last].tolist()))
        if last > first and free:
            col[first:last] = torch.tensor(sorted([*col[first : last - 1].tolist(), free[0]]), dtype=col.dtype)
            return


Edit = Callable[[dict[str, Tensor], dict[str, str]], None]  # of a file's tensors and header


def _set(key: Callable[[dict[str, Tensor]], str], change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(tensors: dict[str, Tensor], _header: dict[str, str]) -> None:
        tensors[key(tensors)] = change(tensors[key(tensors)]).contiguous()

    return edit


def _moment(tensors: dict[str, Tensor]) -> str:
    return next(
        (key for key, t in tensors.items() if key.startswith("optimizer.") and t.dim()), _values(tensors)
    )  # plain SGD has none


def _values(tensors: dict[str, Tensor]) -> str:
    return next(key for key in tensors if key.startswith("model.") and key.endswith(".values"))


_SPOILERS: dict[str, Callable[[Path], None]] = {
    "a file that was cut off": _cut,
    "a file of noise": lambda path: None if path.write_bytes(bytes(range(256)) * 8) else None,
    "a safetensors file of somebody else": _edited(lambda _tensors, header: header.clear()),
    "a file of a newer version": _edited(lambda _tensors, header: header.update(version="999")),
    "a file without values": _edited(lambda tensors, _header: tensors.__delitem__(_values(tensors))),
    "a file without an index": _edited(lambda tensors, _header: tensors.__delitem__(_index(tensors))),
    "an index that is not sorted": _edited(_set(_index, lambda t: t.flip(0))),
    "an index out of range": _edited(_set(_index, lambda t: t + 1000)),
    "a floating index": _edited(_set(_index, lambda t: t.double())),
    "an index that its values were not saved with": _edited(_moved_unit),
    "values of another length": _edited(_set(_values, lambda t: t[:-1])),
    "values of another dtype": _edited(_set(_values, lambda t: t.float())),
    "a state of the optimizer of another length": _edited(_set(_moment, lambda t: t[:-1])),
    "a state of the optimizer without groups": _restated(lambda items: items.pop()),
    "a state of the optimizer that is a number": _restated(lambda items: items[0].__setitem__(1, 7)),
    "a random state that is none": _edited(_set(lambda _: "rng.torch", torch.zeros_like)),
    **{
        f"one flipped bit at {at} of the file": _flipped(at, i)
        for i, at in enumerate((0.0, 0.001, 0.02, 0.1, 0.4, 0.7, 0.999))
    },
}
