"""Which accuracy did the runs of a sweep reach, and at which cost?

    python benchmarks/readme_table.py runs/fashion                      print it
    python benchmarks/readme_table.py runs/fashion --write README.md    between <!-- results --> and <!-- /results -->
    python benchmarks/readme_table.py runs/csst --write docs/methods/csst.md --mark csst

Makes the table for the README or a page of the docs from the ``table.json`` that ``gossamer sweep`` and ``gossamer
report`` write into a folder. Rows are methods, columns are densities. A cell holds the mean ± standard deviation over
the seeds of the test accuracy after the last epoch. Below it are the training FLOPs over dense, the seconds of a run,
and the numbers of diverged and missing runs.
"""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gossamer.cli.catalog import METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder written by gossamer sweep")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what stands between the marks in this file")
    parser.add_argument(
        "--mark",
        default="results",
        metavar="NAME",
        help="the marks are <!-- NAME --> and <!-- /NAME --> (default: results)",
    )
    args = parser.parse_args(argv)
    source = args.folder / "table.json"
    if not source.is_file():
        print(f"there is no {source}; gossamer report {args.folder} writes it", file=sys.stderr)
        return 2
    text = table(json.loads(source.read_text()))
    if args.write is None:
        print(text)
        return 0
    page = args.write.read_text()
    between = re.compile(rf"(<!-- {re.escape(args.mark)} -->\n).*?(<!-- /{re.escape(args.mark)} -->)", re.DOTALL)
    if len(between.findall(page)) != 1:
        print(f"{args.write} must hold the marks <!-- {args.mark} --> and <!-- /{args.mark} --> once", file=sys.stderr)
        return 2
    args.write.write_text(between.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", page))
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of aggregated rows: methods by densities; the dense network stands in every column."""
    densities = sorted(
        {row["settings"]["density"] for row in rows if row["method"] != "dense" and "density" in row["settings"]},
        reverse=True,
    )
    columns = densities or [None]
    cells: dict[str, dict[Any, str]] = {}
    for row in rows:
        line = cells.setdefault(label(row), {})
        for column in columns if row["method"] == "dense" or not densities else [row["settings"]["density"]]:
            line[column] = cell(row)
    head = ["method", *("accuracy" if column is None else f"density {column:g}" for column in columns)]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *(line.get(column, "-") for column in columns)] for name, line in cells.items()),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + notes(rows)


def label(row: dict[str, Any]) -> str:
    """A row's method, with those of its settings that are not the method's defaults, the density apart."""
    defaults = {f"method.{p.name}": p.default for p in inspect.signature(METHODS[row["method"]]).parameters.values()}
    others = {key: value for key, value in row["settings"].items() if key != "density" and row["method"] != "dense"}
    named = [(key.removeprefix("method."), value) for key, value in others.items() if defaults.get(key) != value]
    return ", ".join([row["method"], *(f"{key} {'null' if value is None else value}" for key, value in named)])


def cell(row: dict[str, Any]) -> str:
    """Accuracy, spread, FLOPs, and what went wrong."""
    troubles = [f"{len(row['diverged'])} diverged"] * bool(row["diverged"]) + [
        f"{row['unfinished']} not finished"
    ] * bool(row["unfinished"])
    if not row["runs"]:
        return ", ".join(troubles)
    mean, sd = row["metrics"]["accuracy"], row["metrics_sd"]["accuracy"]
    spread = "" if sd is None else f" ± {100 * sd:.2f}"
    ratio = f"{row['flops_ratio']:.4f}" + " simulated" * row["simulated"]
    return ", ".join([f"**{100 * mean:.2f}**{spread}<br>{ratio}<br>{row['seconds']:.0f} s", *troubles])


def notes(rows: Sequence[dict[str, Any]]) -> str:
    """What the numbers are."""
    runs = sorted({row.get("seeds", row["runs"]) for row in rows})
    seeds = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    over = f"over {seeds} seed{'s' if runs != [1] else ''}"
    return (
        f"Test accuracy in % after the last epoch, mean ± standard deviation {over}; below it,\n"
        "training FLOPs over those of the dense network on the same steps, sensing included; "
        "below that, seconds of a run."
    )


if __name__ == "__main__":
    sys.exit(main())
