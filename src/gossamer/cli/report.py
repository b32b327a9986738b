"""The table of a folder of runs: means and standard deviations over seeds. Its only input is the folder.

Runs that differ only in the seed form one row. Repeats of a seed are averaged before the standard deviation is taken,
and counted separately. A row counts its diverged and unfinished runs. Accuracy is measured after the last epoch: no
epoch is selected by its test accuracy.
"""

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .._errors import UsageError
from .catalog import METHODS, dense
from .console import markdown, show
from .folder import Folder, write
from .record import ELSEWHERE, flat

Row = dict[str, Any]
IGNORED = ("seed", "threads", *ELSEWHERE)
SPARSE = (
    "density",
    "budget",
    "layout",
    "block",
    "exclude",
    "min_fan_in",
    "density_exponent",
)  # settings without a meaning for a dense model
FIGURES = ("density", "nonzero", "parameters", "flops_ratio", "peak_bytes", "seconds")
GROWN = "grown of sensed"
LEAST = ("kernel", "memory", "seconds", GROWN, "parameters", "loss")  # columns that a narrow terminal leaves out
PROGRESS = ("epoch", "step", "train_loss", "loss")  # metrics of every run that the table leaves out


def collect(path: Path) -> list[Row]:
    """The result of every run below a folder. An unfinished run has its settings and ``status: stopped``.

    Raises UsageError if there is no run.
    """
    found = [Folder(config.parent) for config in sorted(path.rglob("config.yaml"))]
    for folder in found:
        if folder.damage:
            print(f"not in the table: {folder.damage}", file=sys.stderr)
    found = [folder for folder in found if not folder.damage]
    folders = [folder for folder in found if not folder.settings().get("null_models")]  # its runs are in sub-folders
    if not folders:
        raise UsageError(
            str(path), "no run in this folder", remedy="give a folder that gossamer run or gossamer sweep wrote"
        )
    return [
        folder.figures() if folder.over else {"status": "stopped", "config": folder.settings()} for folder in folders
    ]


def aggregate(runs: Sequence[Row]) -> list[Row]:
    """One row per configuration: method, the settings that vary, finished runs, seeds, means, failures."""
    groups: dict[str, list[Row]] = {}
    for run in runs:
        same = {key: value for key, value in flat(run["config"]).items() if key not in IGNORED}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    varied = _varied([flat(group[0]["config"]) for group in groups.values()])
    return [_row(group, varied) for group in sorted(groups.values(), key=_order)]


def _row(group: Sequence[Row], varied: Sequence[str]) -> Row:
    settings = flat(group[0]["config"])
    if METHODS.get(settings["method.name"]) is dense:
        settings = {key: value for key, value in settings.items() if key not in SPARSE}
    done = [run for run in group if run["status"] == "finished"]
    metrics = {name: _by_seed(done, lambda run, name=name: run["metrics"][name]) for name in _measured(done)}
    seeds = len({run["config"]["seed"] for run in done})
    return {
        "method": settings["method.name"],
        "settings": {key: settings[key] for key in varied if key in settings},
        "runs": len(done),
        "seeds": seeds,
        "repeats": len(done) - seeds,
        "metrics": {name: _mean(values) for name, values in metrics.items()},
        "metrics_sd": {name: _sd(values) for name, values in metrics.items()},
        **{name: _mean(_by_seed(done, lambda run, name=name: run[name])) for name in FIGURES},
        "grown": sum(run.get("grown", 0) for run in done),
        "sensed": sum(run.get("sensed", 0) for run in done),
        "least_selective": max((run.get("least_selective") or 0.0 for run in done), default=0.0),
        "kernels": sorted({kernel for run in done for kernel in run["kernels"]}),
        "planned": _planned(done[0]) if done else [],
        "simulated": any(run["simulated"] for run in done),
        "unchanged": any(run.get("events") == 0 for run in done),
        "diverged": [run["step"] for run in group if run["status"] == "diverged"],
        "unfinished": sum(run["status"] == "stopped" for run in group),
    }


def _measured(done: Sequence[Row]) -> list[str]:
    return [name for name in (done[0]["metrics"] if done else {"accuracy"}) if name not in PROGRESS]


def _by_seed(runs: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    """One number for each seed: the mean over its repeats."""
    seeds: dict[int, list[float]] = {}
    for run in runs:
        seeds.setdefault(run["config"]["seed"], []).append(value(run))
    return [mean(values) for values in seeds.values()]


def _planned(run: Row) -> list[str]:
    """Layout and break-even density of each layer of a run with layout auto."""
    return [
        f"{name} {run['layouts'][name]} ({wins or 'not measured'})" for name, wins in run.get("planned", {}).items()
    ]


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _varied(all_settings: Sequence[Row]) -> list[str]:
    """Settings that distinguish the rows. Settings of a part are compared only between rows with the same part."""
    seen: dict[str, dict[Any, set[str]]] = {}
    for settings in all_settings:
        for key, value in settings.items():
            part = None if key.endswith(".name") else settings.get(key.partition(".")[0] + ".name")
            seen.setdefault(key, {}).setdefault(part, set()).add(repr(value))
    ignored = (*IGNORED, "method.name")
    return [
        key
        for key, by_part in seen.items()
        if key not in ignored and any(len(values) > 1 for values in by_part.values())
    ]


def _order(group: Sequence[Row]) -> tuple:
    settings = group[0]["config"]
    name = settings["method"]["name"]
    place = list(METHODS).index(name) if name in METHODS else len(METHODS)
    return name != "dense", -settings["density"], place, name


# -------------------------------------------------------------------- cells


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], list[str]]:
    """(columns, cells, notes) of aggregated rows; runs are counted where rows have several, or where one failed."""
    labels = [key for key in {key: None for row in rows for key in row["settings"]} if key != "density"]
    more = [name for name in {name: None for row in rows for name in row["metrics"]} if name != "accuracy"]
    counted = any(row["runs"] != 1 or row["diverged"] or row["unfinished"] for row in rows)
    grows = any(row["sensed"] for row in rows)
    columns = [
        "method",
        *labels,
        "accuracy",
        *more,
        "density",
        "parameters",
        "FLOPs",
        *[GROWN] * grows,
        "memory",
        "seconds",
        "kernel",
    ]
    cells = []
    for row in rows:
        line = [row["method"], *[_setting(row["settings"], key) for key in labels]]
        line += [_spread(row, "accuracy", 100.0, " %"), *[_spread(row, name, 1.0, "") for name in more]]
        line += [
            _number(row["density"], "{:.4f}"),
            _number(row["nonzero"], "{:,.0f}"),
            _flops(row),
            *[_grown(row)] * grows,
            _bytes(row["peak_bytes"]),
            _number(row["seconds"], "{:.1f}"),
        ]
        cells.append([*line, ", ".join(row["kernels"]) or "-", *[_runs(row)] * counted])
    return [*columns, *["runs"] * counted], cells, _notes(rows)


def _notes(rows: Sequence[Row]) -> list[str]:
    many = any(row["seeds"] > 1 for row in rows)
    repeats = "; repeats of a seed are averaged first" if any(row["repeats"] for row in rows) else ""
    notes = [
        "Accuracy on the test set after the last epoch"
        + ("; mean ± standard deviation over seeds" if many else "")
        + repeats
        + "."
    ]
    notes.append("Parameters: the number of parameters that may be non-zero.")
    notes.append("FLOPs: FLOPs of training, with sensing, over those of the dense model for the same steps.")
    if any(row["sensed"] for row in rows):
        notes.append(
            "Grown of sensed: grown blocks over sensed blocks; a small value means that growth selects strictly."
            " In brackets: the largest value of any layer and event."
        )
    if any(row["simulated"] for row in rows):
        notes.append(
            "Simulated: the masked layout runs dense kernels. The FLOPs are those that sparse kernels would need;"
            " memory and seconds are those of dense kernels."
        )
    idle = sorted({row["method"] for row in rows if row["unchanged"] and row["method"] not in ("dense", "static")})
    if idle:
        notes.append(
            f"No change of the support took place in a run of {', '.join(idle)}: it has fewer steps than method.every."
        )
    for plan in dict.fromkeys(tuple(row.get("planned", ())) for row in rows):
        if plan:
            notes.append(f"Layouts measured on this machine: {'; '.join(plan)}.")
    notes.append("Memory: peak bytes of values, indices, gradients, optimizer state and sensing, without activations.")
    return notes


def _setting(settings: Row, key: str) -> str:
    return "-" if key not in settings else "null" if settings[key] is None else str(settings[key])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _spread(row: Row, name: str, scale: float, unit: str) -> str:
    value, sd = row["metrics"].get(name), row["metrics_sd"].get(name)
    return "-" if value is None else f"{scale * value:.2f}" + (f" ± {scale * sd:.2f}" if sd is not None else "") + unit


def _flops(row: Row) -> str:
    return (
        "-" if row["flops_ratio"] is None else f"{row['flops_ratio']:.4f}" + (" simulated" if row["simulated"] else "")
    )


def _grown(row: Row) -> str:
    return f"{row['grown'] / row['sensed']:.3f} (most {row['least_selective']:.2f})" if row["sensed"] else "-"


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    power = min(3, int(math.log(max(value, 1), 1024)))
    return f"{value / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _runs(row: Row) -> str:
    words = [str(row["seeds"])] if row["runs"] else []
    if row["repeats"]:
        words = [
            f"{row['seeds']} seed{'s' * (row['seeds'] > 1)}",
            f"{row['repeats']} repeat{'s' * (row['repeats'] > 1)}",
        ]
    if row["diverged"]:
        words.append(f"{len(row['diverged'])} diverged (step {', '.join(map(str, row['diverged']))})")
    if row["unfinished"]:
        words.append(f"{row['unfinished']} not finished")
    return ", ".join(words)


# -------------------------------------------------------------------- output


def report(dir: str) -> None:
    """Print the table of the runs in a folder, and write it there as table.md, table.csv and table.json.

    Args:
        dir: a folder that gossamer run or gossamer sweep wrote.
    """
    path = Path(dir)
    rows = aggregate(collect(path))
    columns, cells, notes = table(rows)
    write(path / "table.md", markdown(columns, cells) + "\n" + "\n".join(notes) + "\n")
    write(path / "table.json", json.dumps(rows, indent=2) + "\n")
    write(path / "table.csv", _csv(rows))
    show(str(path), columns, cells, notes, drop=_least(columns, cells))


def _least(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The columns that a narrow terminal does without, in this order: what tells rows apart stays as long as it can."""
    labels = list(columns[1 : columns.index("accuracy")])
    told = ["density"] * (len({line[columns.index("density")] for line in cells}) > 1)
    metrics = [name for name in reversed(columns) if name not in (*LEAST, *labels, *told, "method", "accuracy")]
    return [*LEAST, *metrics, *reversed(labels), *told]


def _csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, one column for each number or string in them."""
    leaves = [
        {key: json.dumps(value) if isinstance(value, list) else value for key, value in flat(row).items()}
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for leaf in leaves for key in leaf)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(leaves)
    return text.getvalue()
