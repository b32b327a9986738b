"""The command ``gossamer run``: from arguments to configurations, folders, runs and the table.

Without a configuration it runs the main job: digits, 95 % zeros by CSST, and its null models dense and static random.
"""

import dataclasses
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .._errors import UsageError, nearest
from .arguments import Arguments, split
from .building import build
from .config import DEFAULTS, PATHS, PENALTY, Layer, Value, configure, merged, parser_of, schema
from .console import help_format
from .folder import Folder
from .parts import constructor_of, default_part, has_penalty, is_rule
from .progress import Silent, watch_for
from .record import PARTS, Config, Tree, flat, settings
from .report import report
from .run import run
from .strict_yaml import read_yaml

WHO = "gossamer run"
MAIN_JOB: Tree = {
    "null_models": True,
    "density_exponent": 0.25,
    "threads": 1,
}  # one thread: the network is too small for more
OPTIONS = ("out", "resume", "change", "help", "print_config")
USAGE = "gossamer run [CONFIG.yaml] [--key value ...] [--out DIR] [--resume [--change KEYS]] [--print_config]"
DESCRIPTION = """Train one configuration. Settings come from CONFIG.yaml; --key value overrides them.
Without CONFIG.yaml the defaults below apply: the digits data set at 95 % zeros, with
CSST, and two null models, dense and static random at the same budget. The settings
below belong to the chosen task, model, method and optimizer. For others, name them:
gossamer run --method rigl --help shows the settings of RigL. Instead of a name, give
the import path of your own class or function: --model my_package.Net.

example: gossamer run experiments/digits.yaml --density 0.02 --method rigl --seed 1"""


def job(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code. Raises UsageError."""
    given = split(WHO, argv, OPTIONS, ("resume", "help", "print_config"))
    change = tuple(filter(None, given.options.get("change", "").split(",")))
    if change and not given.says("resume"):
        raise UsageError(WHO, "--change works only with --resume", remedy="add --resume")
    base = begins(given)
    if given.says("help"):
        print(help_text(given, base))
        return 0
    config, out = place(given, base, change)
    if given.says("print_config"):
        print(yaml.safe_dump(settings(config), sort_keys=False), end="")
        return 0
    config.task.make().check()
    return finish(config, out, given.says("resume"), change)


def begins(given: Arguments) -> Layer:
    """The settings of the file, or of the main job.

    The main job has no null models if the optimizer makes the zeros.
    """
    if given.file is None:
        name = given.settings.get("optimizer", given.settings.get("optimizer.name", Config.optimizer.name))
        penalised = is_rule(constructor_of("optimizer", name, WHO))
        return WHO, {**MAIN_JOB, "null_models": False} if penalised else MAIN_JOB
    tree = read_yaml(given.file)
    if "grid" in tree or "base" in tree:
        what = "this file describes a sweep: it has the keys base and grid"
        raise UsageError(str(given.file), what, remedy=f"use gossamer sweep {given.file}")
    return str(given.file), tree


def finish(config: Config, out: Path, resume: bool, change: tuple[str, ...]) -> int:
    """Trains all runs of the job and prints the table; returns the exit code."""
    runs = variants(config, out)
    try:
        with watch_for(len(runs)) as watch:
            if len(runs) > 1:
                results = together(config, out, runs, resume, change, watch)
            else:
                results = {out: run(runs[out], out, resume=resume, change=change, watch=watch)}
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped between two runs"
        if Folder(out).status == "new":
            print("stopped before the first run began", file=sys.stderr)
        else:
            print(f"{said}; the state is saved. To continue:\n  gossamer run --out {out} --resume", file=sys.stderr)
        return 130
    report(str(out))
    diverged = {path: result for path, result in results.items() if result["status"] == "diverged"}
    for path, result in diverged.items():
        print(divergence(path, result), file=sys.stderr)
    print(f"\nall results are in {out}")
    return 1 if diverged else 0


def together(
    config: Config, out: Path, runs: dict[Path, Config], resume: bool, change: tuple[str, ...], watch: Silent
) -> dict[Path, dict[str, Any]]:
    """Trains a run and its null models, in sub-folders of the job's folder."""
    folder = Folder(out)
    with folder.locked():
        folder.check(config, resume, change)
        for variant in runs.values():
            build(variant)  # check all variants before the first run
        folder.begin(config)
        results = {path: run(one, path, resume=True, change=change, watch=watch) for path, one in runs.items()}
        folder.finish({"status": "finished", "config": settings(config)})
    return results


def place(given: Arguments, base: Layer, change: tuple[str, ...]) -> tuple[Config, Path]:
    """The configuration and the folder of a job, or of the run that is resumed. Raises UsageError."""
    asked, flags = given.options.get("out"), (WHO, given.settings)
    out = Path(asked) if asked else None
    if not given.says("resume"):
        config = configure(base, flags)
        return config.resolved(), out or unused(config)
    out = out or latest(configure(base, flags))
    if Folder(out).status == "new":
        raise UsageError(WHO, f"there is no run to resume in {out}", remedy="omit --resume to begin a new run")
    config = configure(base if given.file else (str(Folder(out).config), Folder(out).settings()), flags)
    known = [*PARTS, *flat(settings(config))]
    for key in change:
        if key not in known:
            what = f"--change: unknown key {key!r}{nearest(key, known)}"
            raise UsageError(WHO, what, remedy="write keys as in --key value, separated by commas")
    return config.resolved(), out


def variants(config: Config, out: Path) -> dict[Path, Config]:
    """The runs of a job by folder: one run in ``out``, or a sub-folder for the run and each null model."""
    alone = dataclasses.replace(config, null_models=False)
    if not config.null_models:
        return {out: alone}
    nulls = [dataclasses.replace(alone, method=default_part("method", name), start=1.0) for name in ("dense", "static")]
    return {out / one.method.name: one for one in (*nulls, alone)}


def divergence(path: Path, result: dict[str, Any]) -> str:
    """The message on a diverged run: what happened, what was kept, what to try."""
    what = f"{path}: the loss became {result['loss']} at step {result['step']}, and training stopped before that step"
    kept = f"the checkpoint after epoch {result['checkpoint_epoch']} is kept"
    remedy = "a smaller --optimizer.lr, a --warm_up of some hundred steps, --clip 1, or a smaller --density_exponent"
    return f"{what}; {kept}\n  To fix it: {remedy}"


# -------------------------------------------------------------------- help


def help_text(given: Arguments, base: Layer) -> str:
    """The help text: the options of the chosen task, model, method and optimizer, with the defaults of the command."""
    names = {key: value for key, value in given.settings.items() if key.removesuffix(".name") in PATHS}
    asked, begins = merged((base, (WHO, names))), merged((base,))
    defaults = {path: begins.get(f"{path}.name", Value(DEFAULTS.get(path), WHO)).value for path in PATHS}
    optimizer = asked.get("optimizer.name", Value(DEFAULTS["optimizer"], WHO)).value
    if has_penalty(constructor_of("optimizer", optimizer, WHO)):
        asked.setdefault(f"{PENALTY}.name", Value("l1", WHO))  # an example, to show settings: it is no default
    chosen = schema(asked)
    parser = parser_of(chosen, defaults, prog=WHO, description=DESCRIPTION, formatter_class=help_format())
    parser.set_defaults({key: value.value for key, value in asked.items() if key in chosen.settings})
    parser.usage = USAGE
    own = parser.add_argument_group("the command")
    for option, metavar, line in (
        ("out", "DIR", "folder of the run; by default runs/ and a name made of the settings"),
        ("change", "KEYS", "settings that the resumed run may change: KEY,KEY"),
    ):
        own.add_argument(f"--{option}", metavar=metavar, default=SUPPRESS, help=line)
    for option, line in (
        ("resume", "continue the run in --out with the settings in its folder"),
        ("print_config", "print the configuration as YAML and stop"),
    ):
        own.add_argument(f"--{option}", action="store_true", default=SUPPRESS, help=line)
    text = parser.format_help()
    for path in PATHS:
        text = text.replace(f"--{path}.name NAME", f"--{path} NAME     ")  # spaces keep the columns aligned
    return "\n".join(line.rstrip() for line in text.splitlines())


# -------------------------------------------------------------------- folders


def label(config: Config) -> str:
    """The name of a folder, made of the main settings."""
    size = f"-{config.density:g}" if config.sparse else ""
    return f"{config.task.name}-{config.model.name}-{config.method.name}{size}-seed{config.seed}"


def numbered(config: Config) -> list[Path]:
    """The existing default folders of a configuration, in order."""
    first = Path("runs") / label(config)
    found = [first] if first.exists() else []
    while found and (later := first.with_name(f"{first.name}-{len(found) + 1}")).exists():
        found.append(later)
    return found


def unused(config: Config) -> Path:
    """The next default folder of a configuration."""
    found = numbered(config)
    first = Path("runs") / label(config)
    return first.with_name(f"{first.name}-{len(found) + 1}") if found else first


def latest(config: Config) -> Path:
    """The last default folder of a configuration."""
    found = numbered(config)
    return found[-1] if found else Path("runs") / label(config)
