"""The table of a folder of runs, from what the runs left there alone: means and standard deviations over seeds.

Runs that differ in nothing but the seed are one row. What diverged or is not finished is said in the row, never left out. Accuracy is that
of the last epoch: no epoch is picked by its test figure.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..errors import Unfit
from .config import ELSEWHERE, flat
from .console import markdown, show
from .folder import Folder, write
from .methods import METHODS

Row = dict[str, Any]
IGNORED = ("seed", "threads", *ELSEWHERE)
FIGURES = ("density", "nonzero", "parameters", "flops_ratio", "peak_bytes", "seconds")
BUILTIN = ("epoch", "step", "train_loss", "loss", "accuracy")


def collect(path: Path) -> list[Row]:
    """Every run below a folder: its result, or its settings and ``status: stopped``. Raises Unfit if there is none."""
    found = [Folder(config.parent) for config in sorted(path.rglob("config.yaml"))]
    folders = [folder for folder in found if not folder.settings().get("null_models")]  # that one only holds others
    if not folders:
        raise Unfit(str(path), "no run in this folder", remedy="a folder that gossamer run or gossamer sweep wrote")
    return [folder.figures() if folder.over else {"status": "stopped", "config": folder.settings()} for folder in folders]


def aggregate(runs: Sequence[Row]) -> list[Row]:
    """One row of numbers per configuration: labels of what varies, ``runs``, ``accuracy`` and ``accuracy_sd``, FIGURES (means), notes."""
    keys = [tuple(sorted((k, repr(v)) for k, v in flat(run["config"]).items() if k not in IGNORED)) for run in runs]
    groups: dict[tuple, list[Row]] = {}
    for key, run in zip(keys, runs, strict=True):
        groups.setdefault(key, []).append(run)
    varied = _varied([flat(group[0]["config"]) for group in groups.values()])
    rows = [_row(group, varied) for group in sorted(groups.values(), key=_order)]
    return rows


def _row(group: Sequence[Row], varied: Sequence[str]) -> Row:
    settings = flat(group[0]["config"])
    done = [run for run in group if run["status"] == "finished"]
    row: Row = {"method": settings["method.name"], **{key: settings.get(key) for key in varied}, "runs": len(done)}
    measured = [name for name in (done[0]["metrics"] if done else {}) if name == "accuracy" or name not in BUILTIN]
    for name in measured or ["accuracy"]:
        values = [run["metrics"][name] for run in done]
        row[name] = mean(values) if values else None
        row[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
    for name in FIGURES:
        row[name] = mean(run[name] for run in done) if done else None
    row["kernels"] = sorted({kernel for run in done for kernel in run["kernels"]})
    row["simulated"] = any(run["simulated"] for run in done)
    row["diverged"] = [run["step"] for run in group if run["status"] == "diverged"]
    row["unfinished"] = sum(run["status"] == "stopped" for run in group)
    return row


def _varied(all_settings: Sequence[Row]) -> list[str]:
    """Settings, apart from the method's name, that distinguish the rows: of a part, among rows with the same part."""
    found = []
    for key in dict.fromkeys(key for settings in all_settings for key in settings):
        part = key.partition(".")[0] + ".name"
        values: dict[Any, set[str]] = {}
        for settings in all_settings:
            if key in settings:
                values.setdefault(settings[part] if "." in key and not key.endswith(".name") else None, set()).add(repr(settings[key]))
        if key != "method.name" and key not in IGNORED and any(len(v) > 1 for v in values.values()):
            found.append(key)
    return found


def _order(group: Sequence[Row]) -> tuple:
    settings = group[0]["config"]
    name = settings["method"]["name"]
    return (name != "dense", -settings["density"], list(METHODS).index(name))


# -------------------------------------------------------------------- words


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], list[str]]:
    """(columns, cells, notes) of aggregated rows."""
    labels = [key for key in rows[0] if key not in ("method", "density") and key in _labels(rows)]
    extra = [key for key in rows[0] if f"{key}_sd" in rows[0] and key != "accuracy"]
    columns = ["method", *labels, "accuracy", *extra, "density", "non-zero", "training FLOPs", "peak memory", "seconds", "kernel"]
    troubled = any(row["diverged"] or row["unfinished"] or not row["runs"] for row in rows)
    many = any(row["runs"] > 1 for row in rows)
    columns += ["runs"] * (many or troubled)
    cells = []
    for row in rows:
        line = [row["method"], *["-" if row[key] is None else str(row[key]) for key in labels]]
        line += [
            _spread(row["accuracy"], row["accuracy_sd"], 100.0, " %"),
            *[_spread(row.get(k), row.get(f"{k}_sd"), 1.0, "") for k in extra],
        ]
        line += [_number(row["density"], "{:.4f}"), _share(row), _flops(row), _bytes(row["peak_bytes"]), _number(row["seconds"], "{:.1f}")]
        line += [", ".join(row["kernels"]) or "-"]
        cells.append([*line, *[_runs(row)] * (many or troubled)])
    return columns, cells, _notes(rows, many)


def _labels(rows: Sequence[Row]) -> list[str]:
    fixed = {"method", "runs", "kernels", "simulated", "diverged", "unfinished", *FIGURES}
    return [key for key in rows[0] if key not in fixed and not key.endswith("_sd") and f"{key}_sd" not in rows[0]]


def _notes(rows: Sequence[Row], many: bool) -> list[str]:
    notes = ["Accuracy on the test set after the last epoch" + ("; mean ± standard deviation over seeds." if many else ".")]
    notes.append("Training FLOPs of linear and convolutional layers, sensing included, over those of the dense model on the same steps.")
    if any(row["simulated"] for row in rows):
        notes.append(
            "Simulated: the masked layout runs dense kernels; the FLOPs are what sparse ones would need, memory and seconds are the dense ones'."
        )
    notes.append("Peak memory, accounted: values, indices, gradients, optimizer state, sensing; not activations.")
    return notes


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _spread(value: float | None, sd: float | None, scale: float, unit: str) -> str:
    return "-" if value is None else f"{scale * value:.2f}" + (f" ± {scale * sd:.2f}" if sd is not None else "") + unit


def _share(row: Row) -> str:
    return "-" if row["nonzero"] is None else f"{row['nonzero']:,.0f} of {row['parameters']:,.0f}"


def _flops(row: Row) -> str:
    return "-" if row["flops_ratio"] is None else f"{row['flops_ratio']:.4f}" + (" simulated" if row["simulated"] else "")


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    step = min(3, int(math.log(max(value, 1), 1024)))
    return f"{value / 1024**step:.1f} {('B', 'KiB', 'MiB', 'GiB')[step]}"


def _runs(row: Row) -> str:
    words = [str(row["runs"])] if row["runs"] else []
    if row["diverged"]:
        words.append(f"{len(row['diverged'])} diverged (step {', '.join(map(str, row['diverged']))})")
    if row["unfinished"]:
        words.append(f"{row['unfinished']} not finished")
    return ", ".join(words)


# -------------------------------------------------------------------- output


def report(dir: str) -> None:
    """Print the table of the runs in a folder, from the folder alone; a sweep's files table.md, .csv and .json are written again.

    Args:
        dir: a folder written by gossamer run or gossamer sweep.
    """
    path = Path(dir)
    rows = aggregate(collect(path))
    columns, cells, notes = table(rows)
    write(path / "table.md", markdown(columns, cells) + "\n" + "\n".join(notes) + "\n")
    write(path / "table.json", json.dumps(rows, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows)
    write(path / "table.csv", text.getvalue())
    show(str(path), columns, cells, notes)
