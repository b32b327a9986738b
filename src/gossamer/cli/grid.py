"""Grids of small computations. Several processes compute the cells, and every finished row is written at once.

settings.json   the settings of the grid; a folder with other settings is refused
rows.jsonl      one line per finished cell: the keys of the cell, then the results
table.csv       the same rows, written at the end
"""

import csv
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from .._errors import UsageError, check_count
from .console import live
from .folder import read_json, read_lines, write
from .record import THREADS

Row = dict[str, Any]


def compute(
    who: str, out: str, settings: Row, cells: Sequence[Row], work: Callable[[Row], Row], jobs: int = 1
) -> tuple[list[Row], Path]:
    """Computes the missing rows of a grid; returns all rows and the folder.

    Args:
        who: the name of the command, for messages.
        out: folder.
        settings: settings of all cells. They are saved, and compared if the folder exists.
        cells: the keys of each cell, with numbers or strings as values.
        work: function at the top level of a module, from the union of settings and cell to the results.
        jobs: processes, one thread each.

    Raises: UsageError if the folder holds results of other settings. KeyboardInterrupt on Ctrl-C.
    """
    if check_count(who, "jobs", jobs, 1) > THREADS:
        raise UsageError(who, f"at most {THREADS} jobs are allowed", got=jobs)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    said, there = folder / "settings.json", json.loads(json.dumps(settings))
    if said.is_file() and (before := read_json(said)) is None:
        raise UsageError(
            str(said),
            "damaged: the settings of the results in this folder cannot be read",
            remedy="use another --out, or delete the folder",
        )
    if said.is_file() and before != there:
        different = [
            f"{key} was {before.get(key)}, is {there.get(key)}"
            for key in {*before, *there}
            if before.get(key) != there.get(key)
        ]
        raise UsageError(
            who,
            f"{folder} holds results of other settings",
            reasons=sorted(different),
            remedy="use another --out, or the same settings",
        )
    write(said, json.dumps(settings, indent=2) + "\n")
    path = folder / "rows.jsonl"
    rows = _complete_lines(path)
    done = {_key(row, cells[0]) for row in rows} if cells else set()
    todo = [cell for cell in cells if _key(cell, cell) not in done]
    print(f"{len(cells)} cells in {folder}: {len(cells) - len(todo)} finished, {len(todo)} to do", flush=True)
    try:
        with path.open("a") as file, _bar(who, len(todo)) as advance:
            for cell, result in _results(work, settings, todo, jobs):
                rows.append({**cell, **result})
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                advance()
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; finished cells are saved: repeat the command to continue") from stop
    order = {_key(cell, cell): i for i, cell in enumerate(cells)}
    rows = sorted(
        (row for row in rows if cells and _key(row, cells[0]) in order), key=lambda row: order[_key(row, cells[0])]
    )
    _table(folder / "table.csv", rows)
    return rows, folder


def numbers(who: str, name: str, values: Sequence[Any], least: float) -> list[Any]:
    """The list of an option. Raises UsageError unless it holds numbers of at least ``least``."""
    if not values or any(isinstance(v, bool) or not isinstance(v, (int, float)) or v < least for v in values):
        raise UsageError(
            who, f"{name} must be a list of numbers of at least {least}, as in --{name} '[1, 2]'", got=values
        )
    return list(values)


def pyplot(who: str) -> Any:
    """The module matplotlib.pyplot, set up to draw without a screen. Raises UsageError if it is not installed."""
    from . import extras

    extras.require("plot", who)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _results(work: Callable[[Row], Row], settings: Row, todo: Sequence[Row], jobs: int):
    if jobs == 1:
        for cell in todo:
            yield cell, work({**settings, **cell})
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(work, {**settings, **cell}): cell for cell in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _complete_lines(path: Path) -> list[Row]:
    """The rows of a file. A line that an interruption has cut is removed from it, and its cell is computed again."""
    rows = list(read_lines(path))
    if path.is_file():
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _key(row: Row, like: Row) -> str:
    return json.dumps({name: row.get(name) for name in like}, sort_keys=True)


def _table(path: Path, rows: list[Row]) -> None:
    plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    with path.open("w", newline="") as file:
        names = list(dict.fromkeys(name for row in plain for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(plain)


class _bar:
    """A live bar on a terminal, about ten lines elsewhere."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done, self.progress = label, total, 0, None

    def __enter__(self) -> Callable[[], None]:
        if live() and self.total:
            from rich.progress import Progress

            self.progress = Progress()
            self.task = self.progress.add_task(self.label, total=self.total)
            self.progress.start()
        return self._advance

    def _advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress.advance(self.task)
        elif self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
            print(f"{self.label}: {self.done}/{self.total}", flush=True)

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()


def save(plt: Any, figure: Any, path: Path) -> None:
    """Writes a figure as a PNG, prints the path, and closes the figure."""
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}", flush=True)
