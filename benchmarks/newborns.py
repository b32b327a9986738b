"""What is the effect of the optimizer state of newborn connections under AdamW?

    python benchmarks/newborns.py --results runs/newborns.jsonl --data tinyshakespeare.txt                    measure
    python benchmarks/newborns.py --results runs/newborns.jsonl --tasks images --budget 600                   a part
    python benchmarks/newborns.py --results runs/newborns.jsonl --cells 0 --markdown docs/methods/newborn.md  the table

Every setting of ``Rewirer(..., newborn=...)`` is measured on two tasks:

    images   Fashion-MNIST, multilayer perceptron; accuracy on the last tenth of the training set (no test set is read)
    text     a small transformer on the characters of a text (``--data``); bits per character on its last tenth.

Let l_t be the loss of the batch of step t before the update, and E the steps that end with an event:

    rise    mean over t in E of  mean(l_{t+1} .. l_{t+5}) - m      m, sd: mean, standard deviation of l_{t-19} .. l_t
    peak    mean over t in E of  max(l_{t+1} .. l_{t+20}) - (m + 2 sd)
    above   fraction of E where the peak is positive

The null models are ``dense`` and ``static``, a random support that never changes. ``static`` is measured at the steps
of the events of RigL and SET: it shows the three numbers that chance and the trend of the loss give. The most important
cells run first, with all seeds and settings of one cell before the next. A finished cell is one line of ``--results``
and is not run again, so the same command continues an interrupted run. The tasks are in ``newborn_tasks.py``.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

import gossamer as gs
import report as pages
import timing
from gossamer.cli.tasks import stream
from newborn_tasks import Images, Setting, Text
from report import Result, Table

BEFORE, SOON, AFTER = 20, 5, 20  # steps around an event
NULLS = ("static", "dense")
BASE = "zero"  # the setting with which all others are compared
ORDER = (  # task, method, density: the most important first
    ("text", "csst", 0.1), ("images", "csst", 0.01), ("text", "rigl", 0.1), ("images", "rigl", 0.01),
    ("images", "csst", 0.05), ("images", "rigl", 0.05), ("images", "set", 0.01), ("images", "set", 0.05),
    ("text", "static", 0.1), ("images", "static", 0.01), ("images", "static", 0.05),
    ("images", "dense", 1.0), ("text", "dense", 1.0),
    ("text", "csst", 0.05), ("text", "rigl", 0.05), ("text", "static", 0.05),
)  # fmt: skip


class Cell(NamedTuple):
    """One training run; a null model has no newborns."""

    task: str
    method: str
    density: float
    newborn: str | None
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the missing cells, then makes the table of all finished cells."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    begin, ran = time.perf_counter(), 0
    try:
        for cell in cells(args):
            task = args.settings[cell.task]
            if key(cell, task) in read(args.results):
                continue
            spent = args.budget is not None and time.perf_counter() - begin >= args.budget
            if ran == args.cells or spent:
                print(f"stopped before {' '.join(map(str, cell))}: repeat the command to continue", file=sys.stderr)
                break
            found = measured(cell, task)
            append(args.results, found)
            ran += 1
            print(
                f"{' '.join(map(str, cell))}: {found['metric']}, rise {found['rise']}, {found['seconds']:.1f} s",
                file=sys.stderr,
            )
    except gs.UsageError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    return report(args)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="FILE",
        help="one line of JSON per finished cell; lines are added",
    )
    p.add_argument("--data", type=Path, metavar="FILE", help="the text of the task text: tiny Shakespeare, say")
    p.add_argument(
        "--images", metavar="FOLDER", help="where Fashion-MNIST is (default: the variable GOSSAMER_DATA, else data)"
    )
    p.add_argument("--tasks", nargs="+", default=["images", "text"], choices=("images", "text"))
    p.add_argument(
        "--newborn",
        nargs="+",
        default=["zero", "fresh"],
        metavar="SETTING",
        help="of the Rewirer (default: zero fresh)",
    )
    p.add_argument("--seeds", type=int, default=4, metavar="N", help="seeds 0 to N - 1")
    p.add_argument("--cells", type=int, metavar="N", help="run at most so many; 0 only makes the table")
    p.add_argument("--budget", type=float, metavar="SECONDS", help="begin no cell after so long")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument(
        "--quick", action="store_true", help="tiny sizes and made images: to see that it runs; its numbers mean nothing"
    )
    p.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between its marks in this page")
    p.add_argument(
        "--mark", default="newborn", metavar="NAME", help="the marks are <!-- table: NAME --> and <!-- end -->"
    )
    args = p.parse_args(argv)
    small: dict[str, Any] = {"steps": 60, "every": 20, "last_every": 20, "batch": 4} if args.quick else {}
    tiny: dict[str, Any] = {"context": 8, "width": 16, "heads": 2, "warm_up": 5} if args.quick else {}
    made: dict[str, Any] = {"widths": (16, 16), "made": True} if args.quick else {}
    args.settings = {
        "images": Images(folder=args.images, **small, **made),
        "text": Text(file=args.data, **small, **tiny),
    }
    return args


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """All requested cells, in order."""
    for task, method, density in ORDER:
        if task in args.tasks:
            for seed in range(args.seeds):
                for newborn in [None] if method in NULLS else args.newborn:
                    yield Cell(task, method, density, newborn, seed)


# -------------------------------------------------------------------- one run


def measured(cell: Cell, task: Setting) -> Result:
    """Trains one network. Returns the line of the results."""
    net, events, losses = task.network(cell.seed), [], []
    if cell.method != "dense":
        net = gs.sparsify(net, cell.density, rng=stream(cell.seed, "support"))
    groups = gs.parameter_groups(net, lr=task.lr, weight_decay=task.weight_decay, density_exponent=0.5)
    optimizer, rewirer = torch.optim.AdamW(groups), None
    if cell.method not in NULLS:
        topology, rng = task.topology(cell.method), stream(cell.seed, "topology")
        rewirer = gs.Rewirer(net, optimizer, topology, newborn=cell.newborn, rng=rng)

    def note(step: gs.Step) -> None:
        losses.append(step.loss)
        if step.event is not None:
            events.append(step.t)

    begin, diverged = time.perf_counter(), None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, task.rate)
    try:
        gs.fit(net, task.batches(cell.seed), optimizer, rewirer=rewirer, scheduler=schedule, on_step=note)
    except gs.Diverged as end:
        diverged = end.step
    seconds = time.perf_counter() - begin
    if cell.method == "static":
        others = task.topology("set")
        events = [t for t in range(1, len(losses) + 1) if others.when(t) is not None]
    return {
        **cell._asdict(),
        "setting": asdict(task),
        "metric": None if diverged else task.metric(net),
        "diverged": diverged,
        **around(losses, events),
        "seconds": seconds,
        "kernels": sorted({name for layer in gs.sparse_layers(net).values() for name in layer.kernels.values()})
        or ["torch"],
        "machine": machine(),
    }


@cache
def machine() -> Result:
    """The machine of this process, without paths."""
    return {name: value for name, value in timing.machine().items() if name != "command"}


def around(losses: Sequence[float], events: Sequence[int]) -> Result:
    """``rise``, ``peak`` and ``above`` around the events, from the losses of the steps 1, 2, ...

    Returns: the three numbers; None for each if no event has enough steps around it.
    """
    rises, peaks = [], []
    for t in events:
        before, after = losses[max(t - BEFORE, 0) : t], losses[t : t + AFTER]
        if len(before) == BEFORE and len(after) == AFTER:
            rises.append(mean(after[:SOON]) - mean(before))
            peaks.append(max(after) - mean(before) - 2 * stdev(before))
    if not rises:
        return {"events": 0, "rise": None, "peak": None, "above": None}
    return {"events": len(rises), "rise": mean(rises), "peak": mean(peaks), "above": mean(peak > 0 for peak in peaks)}


# -------------------------------------------------------------------- the file and the table


def key(cell: Cell, task: Setting) -> str:
    """The key that identifies a line."""
    return json.dumps([cell, asdict(task)])


def read(path: Path) -> dict[str, Result]:
    """Finished cells by their keys. An incomplete line is skipped."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[json.dumps([[row[name] for name in Cell._fields], row["setting"]])] = row
    return found


def append(path: Path, row: Result) -> None:
    """Adds a line, after a line break if the last line is incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(row) + "\n")


def report(args: argparse.Namespace) -> int:
    """Prints the table, and writes it into the page of ``--markdown``. Returns the exit code."""
    settings = {name: json.loads(json.dumps(asdict(task))) for name, task in args.settings.items()}
    rows = [row for row in read(args.results).values() if row["setting"] == settings[row["task"]]]
    if not rows:
        print(f"{args.results} holds no cell of these sizes", file=sys.stderr)
        return 2
    table = tabulated(rows)
    said = [*table.notes] + ["QUICK: tiny sizes, these numbers mean nothing"] * args.quick
    pages.show(table.title, table.columns, table.rows, said, table.left)
    if args.markdown is None:
        return 0
    return pages.fill(args.markdown, {args.mark: pages.text_of(table._replace(notes=said))})


Group = tuple[str, float, str, str | None]  # task, density, method, newborn


def tabulated(rows: Sequence[Result]) -> Table:
    """Tasks, densities and methods by settings. Each setting is compared with "zero" at the same seeds."""
    groups: dict[Group, dict[int, Result]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["density"], row["method"], row["newborn"]), {})[row["seed"]] = row
    methods = ("dense", "static", "set", "rigl", "csst")

    def place(group: Group) -> tuple[Any, ...]:
        task, density, method, newborn = group
        return task, -density, methods.index(method), newborn != BASE, newborn or ""

    columns = [
        "task",
        "density",
        "method",
        "newborn",
        "seeds",
        "held out",
        "less zero",
        "rise",
        "less zero",
        "peak",
        "above, %",
    ]
    lines = [line(group, groups) for group in sorted(groups, key=place)]
    return Table("Newborn connections under AdamW", columns, lines, notes(rows), left=4)


def line(group: Group, groups: dict[Group, dict[int, Result]]) -> list[str]:
    """One row of the table."""
    task, density, method, newborn = group
    found = {seed: row for seed, row in groups[group].items() if not row["diverged"]}
    zero = {} if newborn == BASE else groups.get((task, density, method, BASE), {})
    pairs = [(row, zero[seed]) for seed, row in found.items() if seed in zero and not zero[seed]["diverged"]]
    lost = len(groups[group]) - len(found)

    def two(name: str, digits: int) -> list[str]:
        own = [row[name] for row in found.values() if row[name] is not None]
        less = [row[name] - other[name] for row, other in pairs if None not in (row[name], other[name])]
        return [spread(own, digits), spread(less, digits, signed=True, error=True)]

    rest = {name: [row[name] for row in found.values() if row[name] is not None] for name in ("peak", "above")}
    return [
        *(task, f"{density:g}", method, newborn or "-", f"{len(found)}" + f", {lost} diverged" * (lost > 0)),
        *two("metric", {"images": 2, "text": 3}[task]),
        *two("rise", 4),
        spread(rest["peak"], 3),
        f"{100 * mean(rest['above']):.0f}" if rest["above"] else "-",
    ]


def spread(values: Sequence[float], digits: int, signed: bool = False, error: bool = False) -> str:
    """Mean ± standard deviation, or ± standard error of the mean."""
    if not values:
        return "-"
    said = f"{mean(values):{'+' * signed}.{digits}f}"
    sd = stdev(values) / (math.sqrt(len(values)) if error else 1.0) if len(values) > 1 else None
    return said if sd is None else f"{said} ± {sd:.{digits}f}"


def notes(rows: Sequence[Result]) -> list[str]:
    """The notes: the meaning of the columns, and the machine."""
    machines = sorted({timing.about(row["machine"]).rpartition(";")[0] for row in rows})
    kernels = sorted({name for row in rows for name in row["kernels"] if name != "torch"}) or ["torch"]
    days = sorted({row["machine"]["started"][:10] for row in rows})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    seconds = {
        task: [row["seconds"] for row in rows if row["task"] == task] for task in sorted({row["task"] for row in rows})
    }
    took = ", ".join(f"{task} {min(values):.0f} to {max(values):.0f}" for task, values in seconds.items())
    return [
        "Held out: images accuracy in % (more is better), text bits per character (less is better). Rise and peak: in "
        "nats. Mean ± standard deviation over the seeds. Less zero: less the same seed's with `zero`, mean ± standard "
        "error.",
        f"Rise: mean loss of the {SOON} steps after an event less that of the {BEFORE} before. Peak: the largest of "
        f"{AFTER} steps after it less the mean and twice the standard deviation of the {BEFORE} before; above: of so "
        "many events it is positive. Static: at the steps of RigL's and SET's events.",
        f"Seconds of a run, other work beside: {took}. Kernels: {', '.join(kernels)}. {'; '.join(machines)}; {when}.",
    ]


if __name__ == "__main__":
    sys.exit(main())
