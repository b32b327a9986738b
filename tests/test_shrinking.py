"""Runs whose zeros come from the optimizer: what goes together, and the tables of their experiments."""

import importlib
from pathlib import Path

import pytest

import gossamer as gs
from cases import table
from gossamer.cli.building import build
from gossamer.cli.catalog import OPTIMIZERS
from gossamer.cli.config import parse
from gossamer.cli.parts import is_rule
from gossamer.cli.run import run

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "task": {"name": "planted", "features": 12, "relevant": 6, "hidden": 8, "fan_in": 3, "examples": 96},
    "model.widths": [16, 16],
    "density": 0.2,
    "epochs": 5,
    "batch": 16,
    "threads": 1,
}  # six steps per epoch
SHADOW = {"method": "proximal", "initial": 0.5, "layout": "shadow"}
STEERED = {"name": "targetdensity", "every": 1}
RULES = {  # with what the runs of the experiments have, in short
    "proxsgd": {"lr": 0.5, "penalty": {"name": "l1", "lam": 1e-4}, "momentum": 0.9},
    "iht": {"lr": 0.5},
    "rda": {"lr": 0.1, "penalty": {"name": "l1", "lam": 1e-6}},
    "xrda": {"lr": 0.5, "penalty": {"name": "logl1", "lam": 1e-5}, "weight_decay": 5e-4},
    "linbreg": {"lr": 0.5, "penalty": {"name": "l1", "lam": 0.1}, "momentum": 0.9},
    "adabreg": {"lr": 1e-3, "penalty": {"name": "l1", "lam": 0.1}},
}


def rule(name, **more):
    return {"name": name, **RULES[name], **more}


def tiny(**more):
    return parse({**TINY, **more}, "test")


@pytest.mark.parametrize("name", [name for name, one in OPTIMIZERS.items() if is_rule(one)])
def test_every_shrinking_optimizer_trains(name, tmp_path):
    result = run(tiny(**SHADOW, optimizer=rule(name)), tmp_path)
    assert result["status"] == "finished" and result["events"] is None and not result["simulated"]


@pytest.mark.parametrize("name", ["proxsgd", "rda", "xrda", "linbreg", "adabreg"])
def test_a_run_ends_at_the_density_asked_for(name, tmp_path):
    result = run(
        tiny(**SHADOW, target=STEERED, gain=0.5, optimizer=rule(name)),
        tmp_path,
    )
    assert result["density"] == pytest.approx(0.2, abs=0.005)


def test_a_multilevel_run_ends_at_the_density_asked_for(tmp_path):
    more = {"initial": 0.1, "target": {"name": "targetdensity", "every": 3}, "optimizer": rule("linbreg", lr=0.1)}
    result = run(tiny(method={"name": "multilevel", "coarse": 2}, **more), tmp_path)
    assert (
        result["density"] == pytest.approx(0.2, abs=0.01) and result["events"] == 10 and result["flops"]["sensing"] > 0
    )


REFUSALS = {
    "proximal on compact values": ({"method": "proximal", "optimizer": rule("linbreg")}, "layout"),
    "shadow with a topology": ({"method": "set", "layout": "shadow"}, "layout"),
    "proximal without a penalty": ({**SHADOW, "optimizer": "sgd"}, "makes none"),
    "multilevel without a mirror": ({"method": "multilevel", "optimizer": rule("proxsgd")}, "mirror"),
    "multilevel in masks": ({"method": "multilevel", "optimizer": rule("linbreg"), "layout": "masked"}, "layout"),
    "multilevel clipped": ({"method": "multilevel", "optimizer": rule("linbreg"), "clip": 1.0}, "clip"),
    "multilevel of tiles": ({"method": "multilevel", "optimizer": rule("linbreg"), "block": [2, 2]}, "single weights"),
    "a penalty on a fixed support": ({"method": "static", "optimizer": rule("linbreg")}, "does not change the support"),
    "null models of a penalty": ({**SHADOW, "optimizer": rule("linbreg"), "null_models": True}, "null models"),
    "negative lambda": ({**SHADOW, "optimizer": rule("linbreg", penalty={"name": "l1", "lam": -1.0})}, "lam"),
    "averaging above 1": ({**SHADOW, "optimizer": rule("xrda", averaging=1.5)}, "averaging"),
    "an initial density of zero": (
        {**SHADOW, "initial": 0.0, "optimizer": rule("linbreg")},
        "density",
    ),
    "half a coarse step less than none": (
        {"method": {"name": "multilevel", "coarse": -1}, "optimizer": rule("linbreg")},
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
        build(tiny(**SHADOW, target=STEERED, optimizer=rule("iht")))


def test_the_tables_say_what_the_runs_recorded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    shrinking = importlib.import_module("shrinking")
    dense = run(tiny(method="dense"), tmp_path / "dense")
    for seed in (0, 1):
        run(tiny(**SHADOW, optimizer=rule("linbreg"), seed=seed), tmp_path / f"linbreg{seed}")
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
