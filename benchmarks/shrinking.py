"""Which accuracy, density and cost do proximal and mirror-descent training reach?

    python benchmarks/shrinking.py curve runs/lenet --picture lenet.png     accuracy against non-zeros
    python benchmarks/shrinking.py cost runs/bregman                        accuracy, density, FLOPs, seconds beside SGD
    python benchmarks/shrinking.py target runs/target                       density asked for and reached

Prints a table of a folder of ``gossamer sweep``. All numbers are records of the runs: accuracy on the test set after
the last epoch, the fraction of non-zero weights of all linear and convolutional layers, the training FLOPs by the
ledger over those of the dense network, seconds of training.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from gossamer.cli.record import flat
from gossamer.cli.report import collect

Row = dict[str, Any]
HIDDEN = (
    "name",
    "weight_decay",
    "nesterov",
    "time_scale",
    "beta",
    "accumulate",
    "averaging",
    "group",
)  # settings that no table varies


def words(settings: Row) -> str:
    """A part and its settings on one line."""
    named = [(key.rpartition(".")[2], value) for key, value in flat(settings).items()]
    return " ".join(
        [
            settings["name"],
            *(f"{key}={value:g}" for key, value in named if key not in HIDDEN and is_number(value)),
        ]
    )


def is_number(value: object) -> bool:
    """Whether a value is a number that a table can show."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def grouped(runs: Iterable[Row], key: Any) -> dict[str, list[Row]]:
    """Runs by a key, in order of the first run with each key."""
    groups: dict[str, list[Row]] = {}
    for run in runs:
        groups.setdefault(json.dumps(key(run), sort_keys=True), []).append(run)
    return groups


def spread(values: Sequence[float], form: str) -> str:
    """Mean and, of several values, standard deviation."""
    return form.format(mean(values)) + (f" ± {form.format(stdev(values))}" if len(values) > 1 else "")


def accuracy(runs: Sequence[Row]) -> str:
    """In per cent."""
    return spread([100 * run["metrics"]["accuracy"] for run in runs], "{:.2f}")


def finished(runs: Sequence[Row]) -> list[Row]:
    """The runs that finished."""
    return [run for run in runs if run["status"] == "finished"]


def failures(runs: Sequence[Row]) -> str:
    """The numbers of finished, diverged and stopped runs, as text."""
    counts = {status: sum(run["status"] == status for run in runs) for status in ("finished", "diverged", "stopped")}
    return ", ".join(f"{n} {status}" if status != "finished" else str(n) for status, n in counts.items() if n)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def curve(runs: Sequence[Row]) -> tuple[str, list[tuple[str, float, float]]]:
    """Accuracy against non-zeros, one row per optimizer; and the points (optimizer, % non-zero, % accuracy)."""
    rows, points = [], []
    for group in grouped(runs, lambda run: (run["config"]["task"]["name"], run["config"]["optimizer"])).values():
        config, done = group[0]["config"], finished(group)
        cells = [config["task"]["name"], words(config["optimizer"])]
        if done:
            density = [100 * run["density"] for run in done]
            cells += [accuracy(done), spread(density, "{:.2f}"), spread([run["flops_ratio"] for run in done], "{:.3f}")]
            points.append(
                (config["optimizer"]["name"], mean(density), 100 * mean(run["metrics"]["accuracy"] for run in done))
            )
        else:
            cells += ["-"] * 3
        rows.append([*cells, failures(group)])
    return markdown(["task", "optimizer", "accuracy %", "non-zero %", "FLOPs of dense", "runs"], rows), points


def picture(points: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Accuracy over non-zeros, a line per optimizer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in dict.fromkeys(name for name, *_ in points):
        mine = sorted((x, y) for other, x, y in points if other == name)
        axes.plot(*zip(*mine, strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="non-zero weights, %", ylabel="test accuracy, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def cost(runs: Sequence[Row]) -> str:
    """Accuracy, density and cost, compared with the dense run."""
    dense = finished([run for run in runs if run["config"]["method"]["name"] == "dense"])
    seconds = mean(run["seconds"] for run in dense) if dense else None
    rows = []
    for group in grouped(runs, lambda run: (run["config"]["method"], run["config"]["optimizer"])).values():
        config, done = group[0]["config"], finished(group)
        cells = [words(config["method"]), words(config["optimizer"])]
        if done:
            own, peak = (mean(run[name] for run in done) for name in ("seconds", "peak_bytes"))
            cells += [
                accuracy(done),
                *(spread([run[name] for run in done], "{:.4f}") for name in ("density", "flops_ratio")),
            ]
            cells += [f"{own:.1f}", "-" if seconds is None else f"{own / seconds:.2f}", f"{peak / 2**20:.1f}"]
        else:
            cells += ["-"] * 6
        rows.append([*cells, failures(group)])
    columns = [
        "method",
        "optimizer",
        "accuracy %",
        "density",
        "FLOPs of dense",
        "seconds",
        "of dense",
        "peak MiB",
        "runs",
    ]
    return markdown(columns, rows)


def target(runs: Sequence[Row]) -> str:
    """Target and reached zeros, in per cent of all weights, and the largest error over seeds in points."""
    rows = []
    key = ("model", "optimizer", "density")
    for group in grouped(runs, lambda run: [run["config"][name] for name in key]).values():
        config, done = group[0]["config"], finished(group)
        cells = [config["model"]["name"], config["optimizer"]["name"], f"{100 * (1 - config['density']):g}"]
        if done:
            zeros = [100 * (1 - run["density"]) for run in done]
            miss = max(abs(100 * (run["density"] - config["density"])) for run in done)
            cells += [spread(zeros, "{:.3f}"), f"{miss:.3f}", accuracy(done)]
        else:
            cells += ["-"] * 3
        rows.append([*cells, failures(group)])
    return markdown(
        ["model", "optimizer", "zeros asked, %", "zeros reached, %", "largest miss, points", "accuracy %", "runs"], rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("curve", "cost", "target"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, help="also draw the curve (needs matplotlib)")
    given = parser.parse_args(argv)
    runs = collect(given.folder)
    if given.table == "curve":
        text, points = curve(runs)
        if given.picture:
            picture(points, given.picture)
    else:
        text = {"cost": cost, "target": target}[given.table](runs)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
