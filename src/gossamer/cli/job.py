"""The command ``gossamer run``: from arguments to configurations, folders, runs and the table.

Without a configuration it is the main job: digits, 95 % zeros by CSST, beside its null models dense and static random.
"""

import dataclasses
import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._errors import UsageError, nearest
from .config import (
    KINDS,
    PLAIN,
    Config,
    Tree,
    expected,
    flat,
    merged,
    name_of,
    names,
    parse,
    read_yaml,
    schema,
    settings,
)
from .folder import Folder
from .methods import Dense, Static
from .optimizers import OPTIMIZERS
from .progress import Silent, watch_for
from .report import report
from .run import build, run

WHO = "gossamer run"
MAIN_JOB: Tree = {
    "null_models": True,
    "density_exponent": 0.25,
    "threads": 1,
}  # one thread: on so small a network more only wait
SWITCHES = ["resume", "help", *(key for key, default in PLAIN.items() if isinstance(default, bool))]
DESCRIPTION = """Train one configuration. Settings come from CONFIG.yaml, overridden by --key value; without CONFIG.yaml they begin at the
main job: digits at 95 % zeros by CSST, beside its null models (dense; static random at the same budget). The settings listed for the task,
model, method and optimizer are those of the chosen ones: gossamer run --method rigl --help shows RigL's."""


class Given(NamedTuple):
    """The arguments of the command."""

    config: Path | None
    flags: dict[str, str]  # --key value, the dots kept
    out: Path | None
    resume: bool
    change: tuple[str, ...]  # settings that may be others than those of the run to resume
    help: bool


def main_job(flags: dict[str, str]) -> Tree:
    """What a command without a configuration begins at; without null models where the optimizer asked for makes zeros by itself."""
    chosen = OPTIMIZERS.get(flags.get("optimizer", flags.get("optimizer.name", "")))
    return {**MAIN_JOB, "null_models": False} if chosen is not None and chosen.shrinks else MAIN_JOB


def job(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code. Raises UsageError."""
    given = split(argv)
    base = main_job(given.flags) if given.config is None else read_yaml(given.config)
    if given.help:
        print(help_text(given, base))
        return 0
    config, out = place(given, base)
    config.task.check()
    runs = variants(config, out)
    try:
        with watch_for(len(runs)) as watch:
            results = (
                together(config, out, runs, given, watch)
                if len(runs) > 1
                else {out: run(runs[out], out, resume=given.resume, change=given.change, watch=watch)}
            )
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped between two runs"
        if Folder(out).status == "new":
            print("stopped before anything had begun", file=sys.stderr)
        else:
            print(f"{said}; everything is saved. To continue:\n  gossamer run --out {out} --resume", file=sys.stderr)
        return 130
    report(str(out))
    diverged = {path: result for path, result in results.items() if result["status"] == "diverged"}
    for path, result in diverged.items():
        print(divergence(path, result), file=sys.stderr)
    print(f"\neverything is in {out}")
    return 1 if diverged else 0


def together(
    config: Config, out: Path, runs: dict[Path, Config], given: Given, watch: Silent
) -> dict[Path, dict[str, Any]]:
    """A run and its null models, in folders below one that is theirs."""
    folder = Folder(out)
    with folder.locked():
        folder.check(config, given.resume, given.change)
        for variant in runs.values():
            build(variant)  # refuses now what would be refused after the first run
        folder.begin(config)
        results = {
            path: run(variant, path, resume=True, change=given.change, watch=watch) for path, variant in runs.items()
        }
        folder.finish({"status": "finished", "config": settings(config)})
    return results


def place(given: Given, base: Tree) -> tuple[Config, Path]:
    """The configuration and the folder of a job; those of the run to resume, if that is asked for. Raises UsageError."""
    if given.resume:
        out = given.out or latest(configuration(given, base))
        if Folder(out).status == "new":
            raise UsageError(WHO, f"there is no run to resume in {out}", remedy="without --resume a new run begins")
        config = configuration(given, base if given.config else Folder(out).settings())
        known = [*KINDS, *flat(settings(config))]
        for key in given.change:
            if key not in known:
                raise UsageError(
                    WHO,
                    f"--change: unknown key {key!r}{nearest(key, known)}",
                    remedy="keys as in --key value, with commas",
                )
    else:
        config = configuration(given, base)
        out = given.out or unused(config)
    return config.resolved(), out


def configuration(given: Given, base: Tree) -> Config:
    """The base settings overridden by the flags."""
    where = WHO if given.config is None else str(given.config)
    tree = merged(base, {}, where)
    chosen = names(merged(tree, given.flags, WHO))
    parser = schema(chosen, prog=WHO)
    try:
        typed = parser.parse_args(
            [f"--{key if key not in KINDS else f'{key}.name'}={value}" for key, value in given.flags.items()],
            defaults=False,
        )
    except (ArgumentError, OverflowError) as error:
        raise UsageError(WHO, expected(str(error))) from error
    parse(tree, where)  # a mistake in the file is reported as the file's
    return parse(merged(tree, flat(typed.as_dict()), WHO), WHO)


def variants(config: Config, out: Path) -> dict[Path, Config]:
    """The runs of a job by folder: the configuration alone in ``out``, or in sub-folders beside its null models."""
    alone = dataclasses.replace(config, null_models=False)
    if not config.null_models:
        return {out: alone}
    methods = {name_of(method): method for method in (Dense(), Static(), config.method)}
    return {out / name: dataclasses.replace(alone, method=method) for name, method in methods.items()}


def divergence(path: Path, result: dict[str, Any]) -> str:
    """What happened, what is left, what to try."""
    what = f"{path}: the loss became {result['loss']} at step {result['step']}, before which training was stopped"
    kept = f"the checkpoint after epoch {result['checkpoint_epoch']} is kept"
    return f"{what}; {kept}\n  To fix it: a smaller --optimizer.lr, some hundred steps of --warm_up, --clip 1, or a smaller --density_exponent"


# -------------------------------------------------------------------- arguments


def split(argv: Sequence[str]) -> Given:
    """Sorts the arguments; every option but the switches takes one value. Raises UsageError."""
    positional, flags, waiting = [], {}, list(argv)
    while waiting:
        word = waiting.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            positional.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals and key in SWITCHES and not (waiting and waiting[0].lower() in ("true", "false")):
            value = "true"
        elif not equals:
            if not waiting or waiting[0].startswith("--"):
                merged({}, {key: None}, WHO) if key not in (
                    "out",
                    "change",
                ) else None  # a misspelt key is the likelier mistake
                raise UsageError(WHO, f"--{key} needs a value")
            value = waiting.pop(0)
        flags[key] = value
    if len(positional) > 1:
        raise UsageError(WHO, f"one CONFIG.yaml at most: {', '.join(positional)}", remedy="settings are --key value")
    out, resume, help = flags.pop("out", None), flags.pop("resume", "false"), flags.pop("help", "")
    if resume.lower() not in ("true", "false"):
        raise UsageError(WHO, "--resume is true or false", got=resume)
    change = tuple(filter(None, flags.pop("change", "").split(",")))
    if change and resume.lower() != "true":
        raise UsageError(WHO, "--change names settings in which a resumed run may differ", remedy="--resume beside it")
    config = Path(positional[0]) if positional else None
    return Given(config, flags, Path(out) if out else None, resume.lower() == "true", change, bool(help))


def help_text(given: Given, base: Tree) -> str:
    """The options of the chosen task, model, method and optimizer."""
    wanted = {key: value for key, value in given.flags.items() if key.removesuffix(".name") in KINDS}
    tree = merged(base, wanted, WHO)
    parser = schema(names(tree), prog=WHO, description=DESCRIPTION)
    begins = {f"{kind}.name": name for kind, name in names(merged(base, {}, WHO)).items()}
    parser.set_defaults({**flat(tree), **begins})  # what the command begins at, not what a constructor does
    parser.usage = "gossamer run [CONFIG.yaml] [--key value ...] [--out DIR] [--resume [--change KEYS]]"
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the run (default: runs/ and a name made of the settings)",
        default=SUPPRESS,
    )
    parser.add_argument(
        "--change", metavar="KEYS", help="settings in which the resumed run may differ: KEY,KEY", default=SUPPRESS
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; its settings are in the folder",
        default=SUPPRESS,
    )
    text = parser.format_help()
    for kind in KINDS:
        text = text.replace(f"--{kind}.name", f"--{kind}")
    return text


# -------------------------------------------------------------------- folders


def label(config: Config) -> str:
    """A folder's name made of the settings that matter most."""
    size = f"-{config.density:g}" if config.method.sparse else ""
    return f"{name_of(config.task)}-{name_of(config.model)}-{name_of(config.method)}{size}-seed{config.seed}"


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
