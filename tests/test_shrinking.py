"""Runs whose zeros come from the optimizer: what goes together, and the tables of their experiments."""

import importlib
from pathlib import Path

import pytest

import gossamer as gs
from cases import table
from gossamer.cli.config import parse
from gossamer.cli.optimizers import OPTIMIZERS
from gossamer.cli.run import build, run

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "task": {"name": "planted", "features": 12, "relevant": 6, "hidden": 8, "fan_in": 3, "examples": 96},
    "model.widths": [16, 16],
    "density": 0.2,
    "epochs": 5,
    "batch": 16,
    "threads": 1,
}  # six steps per epoch
SHADOW = {"method": {"name": "proximal", "initial": 0.5}, "layout": "shadow"}


def tiny(**more):
    return parse({**TINY, **more}, "test")


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.shrinks])
def test_every_shrinking_optimizer_trains(name, tmp_path):
    result = run(tiny(**SHADOW, optimizer=name), tmp_path)
    assert result["status"] == "finished" and result["events"] is None and not result["simulated"]


@pytest.mark.parametrize("name", ["proxsgd", "rda", "xrda", "linbreg", "adabreg"])
def test_a_run_ends_at_the_density_asked_for(name, tmp_path):
    result = run(
        tiny(method={"name": "proximal", "initial": 0.5, "target": True, "gain": 0.5}, layout="shadow", optimizer=name),
        tmp_path,
    )
    assert result["density"] == pytest.approx(0.2, abs=0.005)


def test_a_multilevel_run_ends_at_the_density_asked_for(tmp_path):
    method = {"name": "multilevel", "coarse": 2, "initial": 0.1, "target": True}
    result = run(tiny(method=method, optimizer={"name": "linbreg", "lr": 0.1, "lam": 0.1}), tmp_path)
    assert (
        result["density"] == pytest.approx(0.2, abs=0.01) and result["events"] == 10 and result["flops"]["sensing"] > 0
    )


REFUSALS = {
    "proximal on compact values": ({"method": "proximal", "optimizer": "linbreg"}, "layout"),
    "shadow with a topology": ({"method": "set", "layout": "shadow"}, "layout"),
    "proximal without a penalty": ({**SHADOW, "optimizer": "sgd"}, "makes none"),
    "multilevel without a mirror": ({"method": "multilevel", "optimizer": "proxsgd"}, "mirror"),
    "multilevel in masks": ({"method": "multilevel", "optimizer": "linbreg", "layout": "masked"}, "layout"),
    "multilevel clipped": ({"method": "multilevel", "optimizer": "linbreg", "clip": 1.0}, "clip"),
    "multilevel of tiles": ({"method": "multilevel", "optimizer": "linbreg", "block": [2, 2]}, "single weights"),
    "a penalty on a fixed support": ({"method": "static", "optimizer": "linbreg"}, "keeps the support"),
    "null models of a penalty": ({**SHADOW, "optimizer": "linbreg", "null_models": True}, "null models"),
    "negative lambda": ({**SHADOW, "optimizer": {"name": "linbreg", "lam": -1.0}}, "lam"),
    "averaging above 1": ({**SHADOW, "optimizer": {"name": "xrda", "averaging": 1.5}}, "averaging"),
    "an initial density of zero": (
        {"method": {"name": "proximal", "initial": 0.0}, "layout": "shadow", "optimizer": "linbreg"},
        "density",
    ),
    "half a coarse step less than none": (
        {"method": {"name": "multilevel", "coarse": -1}, "optimizer": "linbreg"},
        "coarse",
    ),
}


@table(REFUSALS)
def test_what_does_not_go_together_is_refused(case):
    settings, words = case
    with pytest.raises(gs.UsageError, match=words):
        tiny(**settings)


def test_hard_thresholding_has_no_strength_to_steer():
    with pytest.raises(gs.UsageError, match="no strength"):
        build(tiny(method={"name": "proximal", "target": True}, layout="shadow", optimizer="iht"))


def test_the_tables_say_what_the_runs_recorded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    shrinking = importlib.import_module("shrinking")
    dense = run(tiny(method="dense"), tmp_path / "dense")
    for seed in (0, 1):
        run(tiny(**SHADOW, optimizer="linbreg", seed=seed), tmp_path / f"linbreg{seed}")
    runs = shrinking.collect(tmp_path)
    text, points = shrinking.curve([row for row in runs if row["config"]["method"]["name"] != "dense"])
    assert (
        len(points) == 1 and points[0][0] == "linbreg" and "lam=0.1" in text and text.splitlines()[-1].endswith("| 2 |")
    )
    cost = shrinking.cost(runs).splitlines()
    assert f"| {100 * dense['metrics']['accuracy']:.2f} | 1.0000 | 1.0000 |" in cost[2] and cost[2].startswith(
        "| dense | sgd "
    )
    assert " ± " in cost[3]
    reached = shrinking.target([row for row in runs if row["config"]["method"]["name"] != "dense"]).splitlines()[-1]
    assert reached.startswith("| mlp | linbreg | 80 |")
