"""How accurate are the topologies of the README, and what does their training cost?

    python benchmarks/readme_results.py --write README.md --picture docs/accuracy.svg

Makes the table between the marks of the README, and the picture, from ``experiments/results/fashion.json``. That file
is the ``table.json`` of ``gossamer sweep experiments/fashion.yaml``. Accuracy: on the test set after the last epoch,
mean ± standard deviation over the seeds. FLOPs: those of training, with sensing, over those of the dense network for
the same steps. The picture needs matplotlib.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "fashion.json"
NAMES = {"dense": "dense", "static": "Static", "set": "SET", "rigl": "RigL", "csst": "CSST"}
COLOURS = {"Static": "#888888", "SET": "#0072b2", "RigL": "#d55e00", "CSST": "#009e73"}
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, or writes table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what stands between the marks of this file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw accuracy over FLOPs into this file")
    args = parser.parse_args(argv)
    rows = json.loads(RESULTS.read_text())
    if args.write is None:
        print(table(rows))
    else:
        page = args.write.read_text()
        args.write.write_text(MARKS.sub(lambda marks: f"{marks[1]}{table(rows)}\n{marks[2]}", page))
    if args.picture is not None:
        draw(rows, args.picture)


def table(rows: Sequence[Row]) -> str:
    """Markdown: methods by densities. Each cell has the accuracy, and the FLOPs below. The best sparse mean is bold."""
    densities = sorted({row["settings"]["density"] for row in rows if row["settings"]}, reverse=True)
    best = {d: max(accuracy(row) for row in rows if row["settings"].get("density") == d) for d in densities}
    lines = [f"| method | {' | '.join(f'density {d:g}' for d in densities)} |", "|---|" + "---|" * len(densities)]
    for method, name in NAMES.items():
        mine = {row["settings"].get("density"): row for row in rows if row["method"].lower() == method}
        cells = [cell(mine.get(d) or mine[None], best[d]) for d in densities]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = (
        "Test accuracy in %, mean ± standard deviation over 3 seeds; below, training FLOPs in % of the dense network's."
    )
    return "\n".join([*lines, "", note])


def cell(row: Row, best: float) -> str:
    """One result."""
    mean = f"{accuracy(row):.2f}"
    shown = f"**{mean}**" if accuracy(row) == best else mean
    return f"{shown} ± {100 * row['metrics_sd']['accuracy']:.2f}<br>{100 * row['flops_ratio']:.2f} %"


def accuracy(row: Row) -> float:
    """In %."""
    return 100 * row["metrics"]["accuracy"]


def draw(rows: Sequence[Row], file: Path) -> None:
    """Accuracy over FLOPs, one line a method, and the dense network."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "gossamer", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    [dense] = [row for row in rows if row["method"] == "dense"]
    axes.axhline(accuracy(dense), color="black", linewidth=0.8, linestyle=":")
    axes.text(1.0, accuracy(dense), "dense, 100 %", ha="left", va="bottom")
    for method, name in NAMES.items():
        mine = sorted(
            (r for r in rows if r["method"].lower() == method and r["settings"]), key=lambda r: r["flops_ratio"]
        )
        if mine:
            x, y = [100 * row["flops_ratio"] for row in mine], [accuracy(row) for row in mine]
            spread = [100 * row["metrics_sd"]["accuracy"] for row in mine]
            axes.errorbar(x, y, spread, color=COLOURS[name], marker="o", markersize=4, capsize=2, label=name)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_xlabel("training FLOPs, % of the dense network's")
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
