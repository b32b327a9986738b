"""The command line: what it prints, what it refuses, its exit codes, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gossamer
from gossamer import __version__
from gossamer._backend import dispatch as kernels
from gossamer._backend import native
from gossamer.cli import console, doctor, extras, job, recover, sweep
from gossamer.cli import main as cli
from gossamer.cli.config import KEYS, flat, parse, read_yaml, settings
from gossamer.cli.folder import Folder
from gossamer.cli.report import LEAST, _least

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--task", "planted", "--task.features=12", "--task.relevant=6", "--task.examples=80", "--model.widths=[16]"]
TINY += [
    "--density",
    "0.3",
    "--batch",
    "16",
    "--epochs",
    "2",
    "--method.every=4",
    "--method.window=2",
    "--threads",
    "1",
]


def command(*arguments: str, capsys) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command in this process."""
    code = cli.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


# -------------------------------------------------------------------- without work


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed_one_line_each(arguments, capsys):
    code, out, err = command(*arguments, capsys=capsys)
    assert code == 0 and err == ""
    for name in cli.COMMANDS:
        assert len([line for line in out.splitlines() if line.startswith(f"  {name} ")]) == 1


def test_version(capsys):
    assert command("--version", capsys=capsys) == (0, f"gossamer {__version__}\n", "")


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    code, out, err = command("rum", capsys=capsys)
    assert code == 2 and out == "" and "unknown command 'rum'; did you mean 'run'?" in err


def test_the_help_of_run_shows_the_settings_of_the_chosen_parts(capsys):
    _, csst, _ = command("run", "--help", capsys=capsys)
    code, rigl, _ = command("run", "--method", "rigl", "--task=planted", "-h", capsys=capsys)
    assert code == 0
    for option in (*KEYS, "out", "resume", "print_config"):
        assert f"--{option} " in csst or f"--{option}\n" in csst, option
    assert "--method.window" in csst and "--method.window" not in rigl
    assert "--method.every" in rigl and "--task.noise" in rigl and "CONFIG.yaml" in rigl


def shown(text: str) -> dict[str, str]:
    """Options and defaults of a help text."""
    options = re.split(r"\n  (?=--)", text)
    defaults = {o.split()[0].removeprefix("--"): re.search(r"default:\s+([^()]*|\([^()]*\))\)", o) for o in options}
    return {name: found[1] for name, found in defaults.items() if found}


def test_the_help_shows_what_the_command_begins_at(tmp_path, capsys):
    """The main job's settings without a configuration, else the file's; of another method its own defaults."""
    bare, begins = shown(command("run", "--help", capsys=capsys)[1]), flat(settings(parse(job.MAIN_JOB, "")))
    assert (bare["density_exponent"], bare["null_models"], bare["threads"], bare["density"]) == (
        "0.25",
        "True",
        "1",
        "0.05",
    )
    said = {
        name: " ".join(text.split()).replace("null", "None").replace("(", "[").replace(")", "]")
        for name, text in bare.items()
    }
    begins = {name.removesuffix(".name"): str(value) for name, value in begins.items()}
    assert {name: said[name] for name in begins if name in said} == {
        name: begins[name] for name in begins if name in said
    }
    assert set(begins) <= set(said)
    assert bare["method.drop_fraction"] == "0.5" and bare["method.selectivity"] == "0.25"
    file = tmp_path / "mine.yaml"
    file.write_text("method: {name: rigl, every: 7}\ndensity: 0.2\n")
    mine = shown(command("run", str(file), "--help", capsys=capsys)[1])
    assert (mine["method"], mine["method.every"], mine["density"], mine["null_models"]) == ("rigl", "7", "0.2", "False")
    other = shown(command("run", str(file), "--method", "set", "--help", capsys=capsys)[1])
    assert (other["method.every"], other["density"]) == ("100", "0.2")
    proximal = shown(command("run", "--optimizer", "linbreg", "--help", capsys=capsys)[1])
    assert proximal["null_models"] == "False"


@pytest.mark.parametrize(
    "name", ["run", "sweep", "report", "recover", *(f"recover {e}" for e in recover.COMMANDS), "doctor"]
)
def test_the_help_of_every_command_has_an_example_that_it_takes(name, capsys):
    try:
        code = cli.main([*name.split(), "--help"])
    except SystemExit as end:
        code = end.code
    out = capsys.readouterr().out
    [example] = re.findall(r"^example: gossamer (.*)$", out, re.MULTILINE)
    assert code == 0 and f"usage: gossamer {name}" in out and example.startswith(name)
    offered = set(re.findall(r"--([\w.]+)", out))
    assert set(re.findall(r"--([\w.]+)", example)) <= offered | {"density", "method.every", "epochs", "seed"}


def test_doctor_says_what_is_here_and_why_not(capsys, monkeypatch):
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    code, out, _ = command("doctor", capsys=capsys)
    assert code == 0
    for word in (
        __version__,
        torch.__version__,
        "threads",
        "BLAS",
        "sparse kernels",
        "native builds",
        "GPU",
        "extra run",
        "missing tensorboard",
        "pip install tensorboard",
    ):
        assert word in out


def doctored(*variables: str, capsys, monkeypatch, **attributes) -> str:
    """The output of doctor under environment variables (NAME=value) and attributes of gossamer._backend.native."""
    for name in (kernels.ENVIRONMENT, native.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    for variable in variables:
        monkeypatch.setenv(*variable.split("="))
    for name, value in attributes.items():
        monkeypatch.setattr(native, name, value)
    return command("doctor", capsys=capsys)[1]


class FakeBuild:
    """What doctor asks of a native build."""

    isa, lanes, openmp, __file__ = "avx2", 8, True, native.__file__

    @staticmethod
    def cache_bytes() -> int:
        return 1 << 20


def test_doctor_says_which_native_build_runs_and_why(capsys, monkeypatch):
    here = {
        "capsys": capsys,
        "monkeypatch": monkeypatch,
        "BEST": FakeBuild,
        "BUILDS": [FakeBuild],
        "UNUSABLE": {},
        "MISSING": "",
    }
    monkeypatch.setattr(doctor, "find_spec", lambda name: name.endswith(("_avx512", "_avx2")) or None)
    torch.set_num_threads(3)
    out = doctored(**here)
    assert "native, avx2 build: 8 float32 lanes, 3 OpenMP threads" in out and "1048576 bytes" in out
    assert "avx512, avx2; avx2 is the best that can run here; not avx512: this processor does not support it" in out
    assert "avx2 by GOSSAMER_ISA" in doctored("GOSSAMER_ISA=avx2", **here)
    assert "not avx512: it is broken" in doctored(**{**here, "UNUSABLE": {"avx512": "it is broken"}})
    out = doctored("GOSSAMER_BACKEND=reference", **here)
    assert "reference (plain torch, slower), by GOSSAMER_BACKEND=reference" in out and "pip install -v" not in out
    assert "avx2 build, by GOSSAMER_BACKEND=native" in doctored("GOSSAMER_BACKEND=native", **here)
    out = doctored("GOSSAMER_BACKEND=natve", **here)
    assert (
        "none: GOSSAMER_BACKEND=natve names no kernel; did you mean 'native'?" in out
        and "unset GOSSAMER_BACKEND" in out
    )
    monkeypatch.setattr(FakeBuild, "openmp", False)
    assert "one thread (built without OpenMP)" in doctored(**here)


def test_doctor_says_why_no_native_build_runs_and_what_to_do(capsys, monkeypatch):
    here = {
        "capsys": capsys,
        "monkeypatch": monkeypatch,
        "BEST": None,
        "BUILDS": [],
        "UNUSABLE": {},
        "MISSING": "no compiler was found",
    }
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    out = doctored(**here)
    assert (
        "reference (plain torch, slower): no compiler was found" in out
        and "install g++" in out
        and "pip install -v" in out
    )
    assert "none: GOSSAMER_BACKEND=native, but no compiler was found" in doctored("GOSSAMER_BACKEND=native", **here)
    assert "install g++" not in doctored("GOSSAMER_BACKEND=reference", **here)
    out = doctored("GOSSAMER_ISA=mmx", **here)
    assert "unset GOSSAMER_ISA" in out and "install g++" not in out


@pytest.mark.skipif(native.BEST is None, reason=f"no native build runs here: {native.MISSING}")
def test_the_native_build_shares_the_threads_of_torch(capsys, monkeypatch):
    assert (
        "OpenMP threads shared with torch" in doctored(capsys=capsys, monkeypatch=monkeypatch) or not native.BEST.openmp
    )


def test_a_missing_extra_is_one_message_with_the_command(capsys, monkeypatch):
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("rich", "jsonargparse") else found(name))
    code, out, err = command("run", capsys=capsys)
    assert code == 2 and out == ""
    assert err.splitlines() == [
        "gossamer run: needs packages that are not installed: jsonargparse[signatures], rich",
        '  To fix it: pip install "jsonargparse[signatures]" rich',
    ]


def test_the_entry_point_and_doctor_need_the_core_alone():
    code = "import sys; from gossamer.cli.main import main; main(['doctor']); main([]); main(['--version']);"
    code += "sys.exit(', '.join({'jsonargparse', 'rich', 'yaml', 'sklearn'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------- refused before any work

REFUSED = {
    "unknown key 'densty'; did you mean 'density'": ["--densty", "0.1"],
    "unknown key 'method.windw' of method csst; did you mean 'method.window'": ["--method.windw=3"],
    "unknown key 'method.window' of method rigl": ["--method", "rigl", "--method.window=3"],
    "unknown method 'cst'; did you mean 'csst'": ["--method", "cst"],
    "unknown task 'digit'; did you mean 'digits'": ["--task=digit"],
    "density: Expected a float. Got value: much": ["--density", "much"],
    "model.widths: Expected a tuple": ["--model.widths", "64"],
    "in (0, 1]": ["--density", "2"],
    "--density needs a value": ["--density"],
    "did you mean 'epochs'": ["--epoch"],
    "one CONFIG.yaml at most": ["a.yaml", "b.yaml"],
    "no such configuration file; did you mean 'mine.yaml'": ["mein.yaml"],
    "4 of 4 data files are missing": ["--task", "fashion-mnist", "--task.data", "nowhere"],
    "there is no run to resume": ["--resume"],
    "needs images": ["--model", "lenet5"],
    "mine.yaml: unknown key 'epoch'": ["mine.yaml"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_argument_is_refused_before_any_work(message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("epoch: 3\n")
    code, out, err = command("run", *REFUSED[message], capsys=capsys)
    assert code == 2 and message in err
    assert not Path("runs").exists()


HOSTILE = {
    "an argument must be UTF-8 text": ["--out", "a\x00b"],
    "an argument must be UTF-8 text without": ["--task.data=\udcff"],
    "without control characters": ["--method", "\x1b[31m"],
    "at most 40 brackets": ["--model.widths=" + "[" * 50],
    "at most 4,000 letters": ["--exclude=" + "x" * 5000],
    "threads are allowed": ["--threads", "100000"],
    "seed: must be a whole number below 2^63": ["--seed", str(2**63)],
    "optimizer.lr: must be a finite number": ["--optimizer.lr", "1e300"],
    "batch: must be a whole number below 2^31": ["--batch", "9" * 30],
    "take 12,": ["--model.widths=[1000000,1000000]"],
    "optimizer steps": ["--epochs", "2000000000", "--batch", "1"],
    "cannot be written: Not a directory": ["--out", "/dev/null/x", "--null_models=false"],
    "this is a folder": ["."],
    "File name too long": ["9" * 3000],
    "--change works only with --resume": ["--change", "epochs"],
    "--resume must be true or false": ["--resume=maybe"],
    "the key 'seed' is given twice": ["twice.yaml"],
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_arguments_end_in_a_sentence(message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("twice.yaml").write_text("seed: 1\nseed: 2\n")
    code, _, err = command("run", *HOSTILE[message], capsys=capsys)
    assert code == 2 and message in err and len(err) < 1500
    assert [p.name for p in tmp_path.iterdir()] == ["twice.yaml"]


def test_a_doctor_takes_no_options(capsys):
    code, _, err = command("doctor", "x", capsys=capsys)
    assert code == 2 and "there are no options (got 'x')" in err


def test_a_wrong_option_of_a_sweep_is_refused(tmp_path, capsys):
    code, _, err = command("sweep", "x.yaml", "--job", "2", capsys=capsys)
    assert code == 2 and "unknown option --job; did you mean '--jobs'" in err
    code, _, err = command("sweep", str(tmp_path / "x.yaml"), "--jobs", "two", capsys=capsys)
    assert code == 2 and "jobs: Expected a int" in err
    code, _, err = command("sweep", str(tmp_path / "x.yaml"), capsys=capsys)
    assert code == 2 and "no such configuration file" in err


# -------------------------------------------------------------------- runs


def test_the_main_job_stands_beside_its_null_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("run", "--epochs", "2", "--model.widths=[16]", capsys=capsys)
    assert code == 0 and err == ""
    folder = tmp_path / "runs" / "digits-mlp-csst-0.05-seed0"
    assert all(Folder(folder / name).status == "finished" for name in ("dense", "static", "csst"))
    settings = [Folder(folder / name).settings() for name in ("static", "csst")]
    assert [s.pop("method")["name"] for s in settings] == ["static", "csst"] and settings[0] == settings[1]
    lines = out[out.index("\nmethod") :].splitlines()[1:]
    assert lines[0].split() == ["method", "accuracy", "density", "parameters", "FLOPs", "memory", "seconds", "kernel"]
    assert [line.split()[0] for line in lines[2:5]] == ["dense", "static", "csst"]
    assert "\x1b" not in out and out.rstrip().endswith(str(Path("runs") / folder.name))
    code, again, _ = command("report", str(folder), capsys=capsys)
    assert code == 0 and "\n".join(lines[2:5]) in again
    command("run", "--epochs", "2", "--model.widths=[16]", capsys=capsys)  # nothing is overwritten
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}-2"]


def test_a_configuration_overridden_by_flags_alone_in_its_folder(tmp_path, capsys):
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(
        "task: planted\nmethod: {name: csst, every: 4, window: 2}\ndensity: 0.2\n"
        "model: {name: mlp, widths: [16]}\nepochs: 2\n"
    )
    code, said, _ = command(
        "run",
        str(file),
        "--out",
        str(out),
        "--task.examples",
        "80",
        "--density=0.3",
        "--layout",
        "masked",
        capsys=capsys,
    )
    settings = Folder(out).settings()
    assert code == 0 and Folder(out).status == "finished" and "simulated" in said
    assert settings["density"] == 0.3 and settings["method"]["window"] == 2 and settings["task"]["examples"] == 80
    code, _, err = command("run", str(file), "--out", str(out), capsys=capsys)
    assert code == 2 and "already holds a run" in err
    code, _, err = command("run", "--out", str(out), "--resume", "--epochs", "3", capsys=capsys)
    assert code == 2 and "epochs was 2, is 3" in err and "density" not in err
    Folder(out).result.unlink()
    code, _, err = command("run", "--out", str(out), "--resume", "--batch=64", "--change", "batsh", capsys=capsys)
    assert code == 2 and "--change: unknown key 'batsh'; did you mean 'batch'?" in err
    code, _, err = command("run", "--out", str(out), "--resume", "--task.noise=0.1", "--change", "batch", capsys=capsys)
    assert code == 2 and "task.noise was 0.0, is 0.1" in err
    code, said, err = command(
        "run", "--out", str(out), "--resume", "--task.noise=0.1", "--change", "task.noise,batch", capsys=capsys
    )
    assert code == 0, err
    assert Folder(out).settings()["task"]["noise"] == 0.1


def test_a_diverging_run_says_where_and_what_to_try(tmp_path, capsys):
    code, out, err = command(
        "run", *TINY, "--optimizer.lr=1e4", "--epochs=5", "--out", str(tmp_path), "--null_models=false", capsys=capsys
    )
    result = Folder(tmp_path).figures()
    assert (
        code == 1 and f"at step {result['step']}" in err and "checkpoint after epoch" in err and "--optimizer.lr" in err
    )
    assert "1 diverged" in out and load_file(tmp_path / "checkpoint.safetensors")


def start(*arguments: str) -> subprocess.Popen:
    package = str(Path(gossamer.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen(
        [sys.executable, "-m", "gossamer", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )


def test_ctrl_c_saves_says_how_to_go_on_and_the_end_is_the_same(tmp_path, capsys):
    long = ["run", *TINY, "--epochs=20", "--task.examples=240"]
    process = start(*long, "--out", str(tmp_path / "parts"))
    metrics, begun = Folder(tmp_path / "parts" / "static").metrics, time.monotonic()
    while (
        process.poll() is None
        and time.monotonic() < begun + 60
        and not (metrics.is_file() and metrics.read_text().count("\n") > 1)
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "of static" in err and f"gossamer run --out {tmp_path / 'parts'} --resume" in err
    )
    assert Folder(tmp_path / "parts" / "static").status == "stopped"

    code, out, _ = command("run", "--out", str(tmp_path / "parts"), "--resume", capsys=capsys)
    assert code == 0 and "csst: accuracy" in out and "from step" in out
    command(*long, "--out", str(tmp_path / "whole"), capsys=capsys)
    for name in ("dense", "static", "csst"):
        ends = [load_file(tmp_path / place / name / "checkpoint.safetensors") for place in ("whole", "parts")]
        assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []
        rows = [
            [{**row, "seconds": 0} for row in Folder(tmp_path / place / name).rows()] for place in ("whole", "parts")
        ]
        assert rows[0] == rows[1] and len(rows[0]) == 21


def test_a_sweep_from_the_command_line(tmp_path, capsys):
    base = {"task": {"name": "planted", "examples": 40}, "model.widths": [8], "epochs": 1, "threads": 1}
    (tmp_path / "s.yaml").write_text(json.dumps({"base": base, "grid": [{"method": ["dense", "static"]}]}))
    code, out, _ = command("sweep", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 0 and "2 to do" in out and (tmp_path / "out" / "table.csv").is_file()
    assert command("report", str(tmp_path / "out"), capsys=capsys)[0] == 0


# -------------------------------------------------------------------- the committed experiments


def test_the_committed_run_configurations_are_valid():
    for file in ROOT.glob("experiments/*.yaml"):
        tree = read_yaml(file)
        if "grid" not in tree:
            parse(tree, str(file))
    main = parse(job.MAIN_JOB, "")
    assert parse(read_yaml(ROOT / "experiments" / "digits.yaml"), "") == main and main.null_models


def test_the_fashion_sweep_is_the_published_one():
    jobs, _ = sweep.plan(ROOT / "experiments" / "fashion.yaml", None, 1)
    assert len(jobs) == 3 + 4 * 3 * 3
    assert {job.config.epochs for job in jobs} == {15} and {job.config.batch for job in jobs} == {128}


def test_a_run_too_short_for_its_method_says_so(capsys, tmp_path, monkeypatch):
    """Some forty steps hold no event that is a hundred steps apart: the run is static, and the table must say so."""
    monkeypatch.chdir(tmp_path)
    short = ["run", "--epochs", "1", "--threads", "1", "--null_models", "false"]
    assert cli.main(short) == 0
    out = capsys.readouterr().out
    assert "No change of the support took place in a run of csst" in out
    assert (
        "csst-0.05-seed0: no weight will be exchanged: the first exchange would come at step 100" in out
    )  # and at once
    assert cli.main([*short, "--method.every", "10", "--method.last_every", "10"]) == 0
    assert "No change of the support" not in capsys.readouterr().out


# -------------------------------------------------------------------- width

WIDE = {
    "method": "csst",
    "optimizer": "linbreg",
    "accuracy": "97.53 ± 0.12 %",
    "density": "0.0512",
    "parameters": "12,345",
    "FLOPs": "0.1234 simulated",
    "grown of sensed": "0.123 (most 0.25)",
    "memory": "123.4 MiB",
    "seconds": "1234.5",
    "kernel": "native",
}


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_narrow_terminal_drops_columns_and_never_digits(width, terminal, monkeypatch, capsys):
    """What is shown is whole; the least important columns are left out first, and named."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(console, "live", lambda: terminal)
    console.show("a table", list(WIDE), [list(WIDE.values())], ["A note. " * 20], drop=LEAST)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    [missing] = re.findall(r"Not shown in \d+ characters: ([^.]*)\.", " ".join(out.split()))
    missing = missing.split(", ")
    assert missing == [name for name in WIDE if name in missing] and {"kernel", "memory"} <= {*missing}
    cells = [value for name, value in WIDE.items() if name not in missing]
    assert all(value in out for value in cells) and {"method", "accuracy"}.isdisjoint(missing)
    assert len(missing) == {60: 5, 80: 4}[width]


def test_what_tells_rows_apart_stays_longest(monkeypatch, capsys):
    """A varied density stays beside the accuracy; notes on columns that are not shown are left out."""
    monkeypatch.setenv("COLUMNS", "40")
    columns = ["method", "optimizer.lr", "clip", "accuracy", "density", "FLOPs", "memory", "kernel"]
    rows = [["csst", "0.1", "null", "90.00 %", density, "0.1", "1 B", "native"] for density in ("0.1", "0.2")]
    console.show("a table", columns, rows, ["FLOPs: those.", "Memory: that."], drop=_least(columns, rows))
    out = capsys.readouterr().out
    assert (
        "method optimizer.lr accuracy density".split()
        == next(line for line in out.splitlines() if "method" in line).split()
    )
    assert "those" not in out and "that" not in out
    assert _least(columns, rows[:1])[-3:] == ["density", "clip", "optimizer.lr"]


def test_elsewhere_a_table_is_whole(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    console.show("a table", list(WIDE), [list(WIDE.values())], drop=LEAST)
    out = capsys.readouterr().out
    assert all(value in out for value in WIDE.values()) and "Not shown" not in out


def test_a_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "gossamer", "--version"], capture_output=True, text=True)
    assert done.stdout == f"gossamer {__version__}\n"
