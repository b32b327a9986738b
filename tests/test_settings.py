"""Every setting is declared once, by the public constructor: the command line and the pages say what it says.

Import paths go the same way.
"""

import inspect
import json
import re
import sys
from pathlib import Path
from textwrap import dedent
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gossamer as gs
from cases import table

pytest.importorskip("jsonargparse")

from gossamer.cli import config, main, sweep
from gossamer.cli.building import build
from gossamer.cli.catalog import CATALOG, METHODS, OPTIMIZERS, PENALTIES, TARGETS
from gossamer.cli.config import parse, read_yaml, settings
from gossamer.cli.folder import Folder
from gossamer.cli.parts import GIVEN, REQUIRED, constructors, is_rule, settings_of
from gossamer.cli.record import Config, flat
from gossamer.cli.run import run

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "task": {"name": "planted", "features": 12, "relevant": 6, "hidden": 8, "fan_in": 3, "examples": 80},
    "model.widths": [16, 16],
    "density": 0.3,
    "epochs": 2,
    "batch": 16,
    "threads": 1,
}
SHADOW = {"method": "proximal", "layout": "shadow"}
BESIDE = {  # what a part needs beside its name
    "proximal": {**SHADOW, "optimizer": {"name": "linbreg", "penalty": {"name": "l1", "lam": 0.1}}},
    "multilevel": {"method": "multilevel", "optimizer": {"name": "adabreg", "penalty": {"name": "l1", "lam": 0.1}}},
}
LIBRARY = {  # settings of the run that a function of the library declares
    "budget": gs.sparsify,
    "layout": gs.sparsify,
    "block": gs.sparsify,
    "min_fan_in": gs.sparsify,
    "gain": gs.reinitialise_,
    "positive_bias": gs.reinitialise_,
    "newborn": gs.Rewirer,
    "density_exponent": gs.parameter_groups,
    "accumulate": gs.fit,
    "clip": gs.fit,
}
OURS = {
    "dense",
    "proximal",
    "sgd",
    "adamw",
    "iht",
    "none",
}  # no constructor of the library: presets, and names for nothing
PUBLIC = {
    **{("method", name): one for name, one in METHODS.items() if name not in OURS},
    **{("optimizer", name): one for name, one in OPTIMIZERS.items() if name not in OURS},
    **{("penalty", name): one for name, one in PENALTIES.items()},
    **{("target", name): one for name, one in TARGETS.items() if name not in OURS},
}


def declared(function: Any) -> dict[str, Any]:
    """Defaults by a signature."""
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


# -------------------------------------------------------------------- signatures and the schema


@pytest.mark.parametrize("case", PUBLIC.values(), ids=lambda one: one.__name__)
def test_a_name_is_that_of_a_public_class_in_lower_case(case):
    assert getattr(gs, case.__name__) is case
    assert [name for (_, name), one in PUBLIC.items() if one is case] == [case.__name__.lower()]


@pytest.mark.parametrize("kind, name", PUBLIC)
def test_the_schema_is_the_signature(kind, name):
    """Every parameter is a setting with its default, or given by the run, or a part; nothing is added."""
    said = {key: one.default for key, one in settings_of(kind, PUBLIC[kind, name]).items()}
    there: dict[str, Any] = {}
    for one in constructors(kind, PUBLIC[kind, name]):
        there |= declared(one)
    assert {key: there[key] for key in said} == said
    lacking = set(there) - set(said)
    assert lacking <= {*GIVEN[kind], "penalty"}


@pytest.mark.parametrize("key", LIBRARY)
def test_a_setting_of_the_run_has_the_default_of_the_library(key):
    assert getattr(Config, key) == declared(LIBRARY[key])[key]


def test_another_default_is_noticed(monkeypatch):
    def rigl(every: int = 99):
        return gs.RigL(every=every)

    assert settings_of("method", rigl)["every"].default != declared(gs.RigL)["every"]


def test_no_function_of_the_command_line_repeats_a_signature():
    """Only presets have parameters of their own; every other setting is declared by the library's constructor."""
    mine = {name: one for registry in CATALOG.values() for name, one in registry.items() if name in OURS}
    assert {name: set(declared(one)) for name, one in mine.items() if declared(one)} == {
        "sgd": {"params", "lr", "momentum", "nesterov", "weight_decay"},  # torch's own defaults are others
        "adamw": {"params", "lr", "betas", "eps", "weight_decay"},
        "iht": {"density", "momentum"},
    }


def defaults_shown(text: str) -> dict[str, str]:
    """Options and defaults of a help text."""
    options = re.split(r"\n  (?=--)", " ".join(text.split()).replace(" --", "\n  --"))
    return {
        o.split()[0].removeprefix("--"): found[1].strip()
        for o in options
        if (found := re.search(r"default:\s+([^()]*|\([^()]*\))\)", o))
    }


@pytest.mark.parametrize("name", [name for name in METHODS if name != "dense"])
def test_the_help_shows_every_setting_of_a_method(name, capsys):
    assert main.main(["run", "--method", name, "--help"]) == 0
    said = defaults_shown(capsys.readouterr().out)
    for key, one in settings_of("method", METHODS[name]).items():
        assert said[f"method.{key}"] == str(one.default).replace("None", "null")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_help_shows_every_setting_of_an_optimizer(name, capsys):
    assert main.main(["run", "--optimizer", name, "--help"]) == 0
    said = defaults_shown(capsys.readouterr().out)
    for key, one in settings_of("optimizer", OPTIMIZERS[name]).items():
        assert said[f"optimizer.{key}"] == str(one.default).replace("None", "null")
    assert said["optimizer"] == "sgd"


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in ("method", "optimizer") for name in CATALOG[kind]])
def test_the_parsed_configuration_has_every_setting(kind, name):
    if kind == "method":
        parsed = parse({"method": name, **BESIDE.get(name, {})}, "").method
    elif not is_rule(OPTIMIZERS[name]):
        parsed = parse({"optimizer": name}, "").optimizer
    else:
        penalty = {} if name == "iht" else {"penalty": {"name": "logl1" if name == "xrda" else "l1", "lam": 0.1}}
        parsed = parse({**SHADOW, "optimizer": {"name": name, **penalty}}, "").optimizer
    said = {key: value for key, value in parsed.settings.items() if key != "penalty"}
    assert said == {key: one.default for key, one in settings_of(kind, CATALOG[kind][name]).items()}


def when(trial):
    return trial.rewirer.topology.when


def ends(trial) -> float:
    return trial.rewirer.topology.final_density


def rule(name: str, penalty: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**SHADOW, "optimizer": {"name": name, "penalty": penalty, **more}}


LOG = {"name": "logl1", "lam": 0.1, "group": "kernel", "shrinking": True}
ROWS = {"name": "groupl1", "lam": 0.1, "group": "row"}
STEERED = {"name": "targetdensity", "every": 1, "pull": 0.5, "landing": 2}
REACHED = {  # settings -> whether they have arrived
    "decay of csst": ({"method": {"name": "csst", "decay": 0.5}}, lambda t: t.rewirer.topology.sense.decay == 0.5),
    "regrowth": ({"method": {"name": "csst", "allow_regrow": True}}, lambda t: when(t).allow_regrow),
    "no regrowth": ({"method": "csst"}, lambda t: not when(t).allow_regrow),
    "signs": ({"method": {"name": "set", "signed": True}}, lambda t: t.rewirer.topology.drop_score is gs.drop_by_sign),
    "a step on events": ({"method": {"name": "rigl", "step_optimizer": True}}, lambda t: when(t).step_optimizer),
    "a count of steps": ({"method": {"name": "set", "stop": 7}}, lambda t: t.rewirer.topology.stop == 7),
    "the whole run": ({"method": {"name": "set", "stop": 1.0}}, lambda t: t.rewirer.topology.stop == 10),
    "fan-in": ({"method": {"name": "rigl"}, "min_fan_in": 1}, lambda t: t.rewirer.topology.min_fan_in == 1),
    "newborns": ({"newborn": "zero"}, lambda t: t.rewirer.newborn.mode == "zero"),
    "the end of gmp": ({"method": {"name": "gmp"}}, lambda t: ends(t) == 0.3 and t.ledger.kept == t.ledger.weights),
    "a larger start": ({"start": 2.0}, lambda t: ends(t) == 0.3 and t.ledger.kept > 0.5 * t.ledger.weights),
    "groups and averaging": (rule("xrda", ROWS, averaging=0.5), gs.XRDA(gs.GroupL1(0.1, "row"), 0.5)),
    "time scales": (
        rule("xrda", LOG, magnitude_time_scale=3, accumulate=False),
        gs.XRDA(gs.LogL1(0.1, group="kernel", shrinking=True), magnitude_time_scale=3.0, accumulate=False),
    ),
    "the density of iht": ({**SHADOW, "optimizer": "iht"}, gs.ProxSGD(gs.TopK(density=0.3), 0.9)),
    "the target": (
        {**BESIDE["proximal"], "target": STEERED},
        lambda t: (t.target.pull, t.target.landing, t.target.density, t.target.steps) == (0.5, 2, 0.3, 10),
    ),
    "coarse steps": (
        {**BESIDE["multilevel"], "method": {"name": "multilevel", "coarse": 3}},
        lambda t: t.rewirer.coarse == 3,
    ),
}
SHORT = {
    "csst": {"every": 2, "last_every": 2, "window": 2},
    "rigl": {"every": 2},
    "set": {"every": 2},
    "gmp": {"every": 2},
}


@table(REACHED)
def test_a_setting_reaches_its_constructor(case):
    given, arrived = case
    method = given.get("method", "csst")
    name = method if isinstance(method, str) else method["name"]
    events = {f"method.{key}": value for key, value in SHORT.get(name, {}).items()}
    trial = build(parse({**TINY, **given, **events}, ""))
    assert arrived(trial) if callable(arrived) else trial.optimizer.rule == arrived


# -------------------------------------------------------------------- the pages

TABLE = re.compile(r"^\| setting of `gs\.(\w+)` \|.*\n\| ?-.*\n((?:\|.*\n)+)", re.MULTILINE)


def tables() -> dict[str, dict[str, str]]:
    """By class the settings and defaults that the pages list, as written; "" for one without default."""
    found: dict[str, dict[str, str]] = {}
    for page in sorted((ROOT / "docs" / "methods").glob("*.md")):
        for name, rows in TABLE.findall(page.read_text()):
            found[name] = {}
            for row in rows.splitlines():
                names, defaults = row.split("|")[1:3]
                values = [v.strip(" `") for v in re.split(r",(?![^(]*\))", defaults)]
                found[name] |= dict(zip(re.findall(r"`(\w+)`", names), values, strict=True))
    return found


@pytest.mark.parametrize("name", sorted(tables()))
def test_a_page_lists_the_settings_that_the_command_line_takes(name):
    [(kind, schema)] = [(kind, settings_of(kind, one)) for (kind, _), one in PUBLIC.items() if one is getattr(gs, name)]
    there = {key: "" if one.default is REQUIRED else repr(one.default).replace("'", '"') for key, one in schema.items()}
    own = {key: value for key, value in there.items() if key in declared(getattr(gs, name))}
    assert {key: value for key, value in tables()[name].items() if key not in (*GIVEN[kind], "penalty")} == own


# -------------------------------------------------------------------- from YAML to the constructor

ORDER = ["catalog", "parts", "record", "together", "strict_yaml", "config"]  # a module calls itself and those before it


def test_a_setting_takes_few_hops_and_never_climbs(tmp_path):
    """At most six functions are open when a constructor is reached; each step is made once; no call goes upwards."""
    file, package = tmp_path / "a.yaml", str(Path(config.__file__).parent)
    file.write_text("method: {name: csst, every: 7, window: 3}\n")
    entered: list[str] = []
    climbs: list[tuple[str, str]] = []
    stacks: list[list[str]] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        here = Path(frame.f_code.co_filename)
        before = frame.f_back and Path(frame.f_back.f_code.co_filename)
        if str(here.parent) == package:
            entered.append(frame.f_code.co_name)
            if before and str(before.parent) == package and {here.stem, before.stem} <= {*ORDER}:
                climbs.extend([(before.stem, here.stem)] * (ORDER.index(here.stem) > ORDER.index(before.stem)))
        if here.name == "csst.py" and frame.f_code.co_name == "__post_init__":
            stacks.append([])
            while (frame := frame.f_back) is not None:  # type: ignore[assignment]
                if "gossamer" in Path(frame.f_code.co_filename).parts and frame.f_code.co_name != "__init__":
                    stacks[-1].append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        config.configure((str(file), read_yaml(file)))
    finally:
        sys.setprofile(None)
    way = [
        name
        for name in entered
        if name in ("read_yaml", "configure", "merged", "schema", "typed", "constructed", "topology")
    ]
    assert way == ["read_yaml", "configure", "merged", "schema", "typed", "constructed", "topology"]
    assert len(stacks) == 1 and stacks[0] == ["make", "topology", "check_parts", "configure"]
    assert len(stacks[0]) <= 6 and climbs == []


# -------------------------------------------------------------------- a user's own parts

MINE = '''
from dataclasses import dataclass
import torch
from torch import nn
import gossamer as gs
from gossamer.cli.tasks import Planted

class Net(nn.Module):
    """A network of mine.

    Args:
        width: of the hidden layer.
    """

    def __init__(self, shape, classes, width: int = 16):
        super().__init__()
        self.first, self.second = nn.Linear(shape[0], width), nn.Linear(width, classes)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

def plain(width: int = 8, features: int = 12):
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 4))

def no_model(width: int = 8):
    return width

@dataclass(frozen=True)
class Mine:
    """Grows at random every so often."""

    often: int = 4
    min_fan_in: int = 0

    def resolve(self, steps):
        return gs.SET(stop=steps, every=self.often, min_fan_in=self.min_fan_in).resolve(steps)

def topology(often: int = 4):
    return gs.SET(stop=9, every=often)

class Apart:
    """A topology that keeps nothing of its settings as they came."""

    def __init__(self, stop: int | float = 0.75, every: int = 10, final_density: float | None = None):
        self.made = gs.SET(stop, every, final_density=final_density)

    def resolve(self, steps):
        return self.made.resolve(steps)

def for_steps(steps: int, every: int = 2):
    return gs.SET(stop=steps, every=every)

class Unsuitable:
    def __init__(self, x: int = 1):
        pass

class Needs:
    def __init__(self, thing: torch.Tensor):
        pass

@dataclass(frozen=True)
class MyRule(gs.ProxSGD):
    """My rule."""

class MyPenalty(gs.L1):
    """My penalty."""

@dataclass(frozen=True)
class MyTask(Planted):
    """My task."""

    features: int = 12
    relevant: int = 6
    examples: int = 80

def plain_sgd(params, lr: float = 0.05):
    return torch.optim.SGD(params, lr=lr)
'''

OWN = {
    "a module": {"model": {"name": "mine.Net", "width": 20}},
    "a function that makes a module": {"model": "mine.plain"},
    "a topology": {"method": {"name": "mine.Mine", "often": 3}},
    "a function that makes a topology": {"method": {"name": "mine.topology", "often": 3}},
    "a rule and a penalty": {
        **SHADOW,
        "optimizer": {"name": "mine.MyRule", "lr": 0.1, "penalty": {"name": "mine.MyPenalty", "lam": 1e-3}},
    },
    "a torch optimizer": {"optimizer": {"name": "torch.optim.RMSprop", "lr": 1e-3}},
    "an optimizer of mine": {"optimizer": "mine.plain_sgd"},
    "a task": {"task": "mine.MyTask"},
    "a topology for so many steps": {"method": {"name": "mine.for_steps", "steps": 9}},
    "a topology without attributes, in a run too short for it": {
        "method": {"name": "mine.Apart", "every": 10**6},
        "start": 2.0,
    },
    "a public class by its path": {"method": {"name": "gossamer.RigL", "every": 3}},
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the current folder."""
    (tmp_path / "mine.py").write_text(dedent(MINE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


def tiny(**given):
    base = {key: value for key, value in TINY.items() if not (key == "model.widths" and "model" in given)}
    return parse({**base, **given}, "a file")


@table(OWN)
def test_an_import_path_goes_the_same_way(case, mine):
    """It trains, its settings are saved by its path, and the folder alone is enough to resume."""
    made = run(tiny(**case), mine / "whole")
    assert made["status"] == "finished"
    folder = Folder(mine / "whole")
    assert parse(folder.settings(), "") == tiny(**case).resolved()
    for kind, said in case.items():
        if kind in ("model", "method", "optimizer", "task") and "." in str(said):
            assert folder.settings()[kind]["name"] == (said if isinstance(said, str) else said["name"])
    folder.result.unlink()
    assert main.main(["run", "--out", str(mine / "whole"), "--resume"]) == 0
    assert {**folder.figures(), "seconds": 0} == {**made, "seconds": 0}


def test_a_run_of_my_own_parts_begins_alike_every_time(mine):
    config = tiny(model="mine.Net", method="mine.Mine")
    for name in ("a", "b"):
        torch.rand(5)
        run(config, mine / name)
    a, b = (load_file(mine / name / "checkpoint.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_my_settings_stand_in_the_help(mine, capsys):
    assert main.main(["run", "--model", "mine.Net", "--method=mine.Mine", "--help"]) == 0
    out = capsys.readouterr().out
    said = defaults_shown(out)
    assert said["model.width"] == "16" and said["method.often"] == "4" and "of the hidden layer." in out
    assert "method.min_fan_in" not in said and "model.shape" not in said  # the run gives them


@pytest.mark.parametrize("name", METHODS)
def test_the_help_has_whole_sentences(name, capsys):
    """The first paragraph of a docstring, not its first line."""
    assert main.main(["run", "--method", name, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert " ".join(inspect.getdoc(METHODS[name]).partition("\n\n")[0].split()) in said


MISTAKES = {
    "no such module": ({"model": "mien.Net"}, "a file: model mien.Net: cannot import mien: No module named 'mien'"),
    "no such name": ({"model": "mine.Nett"}, "module mine has no 'Nett'; did you mean 'Net'"),
    "no class": ({"model": "mine.torch"}, "is neither a class nor a function"),
    "a wrong setting": (
        {"model": {"name": "mine.Net", "widht": 3}},
        "unknown key 'model.widht' of model mine.Net; did you mean 'model.width'",
    ),
    "a wrong type": ({"model": {"name": "mine.Net", "width": "x"}}, "model.width: Expected a int"),
    "what the run gives": ({"method.final_density": 0.1}, "did you mean 'density'"),
    "a key without its part": ({"lr": 0.1}, "did you mean 'optimizer.lr'"),
    "a key like no other": ({"optimizer.zzz": 1}, r"unknown key 'optimizer.zzz' of optimizer sgd\n"),
    "no steps": ({"method": "mine.for_steps"}, "method.steps has no default"),
    "no topology": (
        {"method": "mine.Unsuitable"},
        r"method mine.Unsuitable: it cannot serve as the method\n  - it has no resolve\(steps\)",
    ),
    "no task": ({"task": "mine.Unsuitable"}, "it cannot serve as the task\n  - it has no check"),
    "no rule": ({**SHADOW, "optimizer": "mine.Unsuitable"}, "it cannot serve as the optimizer\n  - it has no "),
    "no penalty": (
        {**SHADOW, "optimizer": {"name": "proxsgd", "penalty": "mine.Unsuitable"}},
        "ProxSGD: this is not a penalty",
    ),
    "nothing that YAML can say": ({"method": "mine.Needs"}, "YAML cannot hold its parameter 'thing'"),
    "refused by torch": ({"optimizer": {"name": "torch.optim.RMSprop", "lr": -1.0}}, "Invalid learning rate: -1.0"),
}


@table(MISTAKES)
def test_a_mistake_with_an_import_path_is_said_before_any_work(case, mine):
    given, words = case
    with pytest.raises(gs.UsageError, match=words):
        tiny(**given)


def test_what_makes_no_model_is_refused(mine):
    with pytest.raises(gs.UsageError, match="this makes no model"):
        build(tiny(model="mine.no_model"))


# -------------------------------------------------------------------- one configuration, and many


def test_print_config_prints_what_the_run_would_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["run", "--method", "rigl", "--method.stop=1.0", "--print_config", "--threads", "2"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    tree = read_yaml(tmp_path / "c.yaml")
    assert tree["method"]["stop"] == 1.0 and isinstance(tree["method"]["stop"], float) and tree["null_models"]
    assert settings(parse(tree, "")) == tree and not (tmp_path / "runs").exists()


def test_a_dash_is_an_underscore(capsys):
    assert main.main(["run", "--min-fan-in", "2", "--print-config", "--null-models=false"]) == 0
    assert "min_fan_in: 2\n" in capsys.readouterr().out


def test_a_sweep_given_to_run_is_named(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("grid: [{seed: [0, 1]}]\n")
    assert main.main(["run", str(tmp_path / "s.yaml")]) == 2
    assert f"use gossamer sweep {tmp_path / 's.yaml'}" in capsys.readouterr().err


GRID = """
base: {base}
grid:
  - {{method: [dense, {{name: csst, every: 4, window: 2}}, {{name: csst, every: 5, window: 2}}], seed: [0, 1]}}
  - {{method: [static], density: [0.3, 0.2], seed: 0}}
"""
OVERRIDES = {
    "one seed": ({"seed": "5"}, ["dense-seed5", "csst-every4-window2-seed5", "csst-every5-window2-seed5"], 5),
    "one method": ({"method": "set"}, ["set-seed0", "set-seed1"], 4),
    "a setting of no grid": ({"epochs": "1"}, ["dense-seed0", "dense-seed1", "csst-every4-window2-seed0"], 8),
}


@table(OVERRIDES)
def test_an_override_acts_on_every_run_and_replaces_the_values_of_the_grid(case, tmp_path):
    overrides, labels, count = case
    file = tmp_path / "s.yaml"
    file.write_text(GRID.format(base=json.dumps({**TINY, "epochs": 2})))
    jobs, _ = sweep.plan(file, str(tmp_path / "out"), 1, overrides)
    assert [job.label for job in jobs][: len(labels)] == labels and len(jobs) == count
    for key, value in overrides.items():
        assert {str(flat(settings(job.config)).get(key, job.config.method.name)) for job in jobs} == {value}


def test_an_override_inside_a_part_of_the_grid(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        GRID.format(base=json.dumps(TINY)).replace("dense, ", "").replace("method: [static]", "method: csst")
    )
    jobs, _ = sweep.plan(file, str(tmp_path / "out"), 1, {"method.every": "12"})
    assert {job.config.method.settings["every"] for job in jobs} == {12}
    assert sum("every12" in job.label for job in jobs) == 2  # the two choices are one now, for two seeds
    with pytest.raises(gs.UsageError, match="gossamer sweep: unknown key 'method.evry'"):
        sweep.plan(file, str(tmp_path / "out"), 1, {"method.evry": "3"})


def test_a_sweep_with_overrides_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "s.yaml"
    file.write_text(GRID.format(base=json.dumps({**TINY, "epochs": 9})))
    arguments = ["--epochs", "1", "--seed=3", "--method", "static", "--density", "0.2", "--out", str(tmp_path / "out")]
    assert main.main(["sweep", str(file), *arguments]) == 0
    assert "2 runs in" in capsys.readouterr().out
    assert Folder(tmp_path / "out" / "static-seed3").settings()["epochs"] == 1
