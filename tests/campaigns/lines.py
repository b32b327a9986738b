"""Hostile input: command lines, configuration files, damaged run folders. Each ends in a sentence: no traceback, no
crash, no other exit code than 0 (done), 1 (diverged), 2 (refused) and 130 (stopped: what runs longer than some seconds
is sent Ctrl-C)."""

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.forks import command, forked
from campaigns.kills import CSST, TINY
from campaigns.tally import Tally
from gossamer.cli.catalog import CATALOG
from gossamer.cli.config import KEYS as SETTINGS
from gossamer.cli.parts import settings_of

SECONDS = 5  # until Ctrl-C
LONGEST = 2000  # letters on standard error
NASTY = [
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e300",
        "-1e300",
        "1e-320",
        "9" * 400,
        "9" * 3000,
        "x" * 5000,
        "é" * 50,
    ),
    *(
        "true",
        "null",
        "~",
        "[]",
        "{}",
        "[[[]]]",
        "[1,2,3,4]",
        "[-1,2]",
        "[1e300]",
        "[99999999999]",
        "[1,2147483647]",
        "[1000000,1000000]",
    ),
    *(
        str(2**31),
        str(2**63),
        str(2**64),
        str(-(2**63)),
        "100000",
        "0x1F",
        "1_000",
        "1:30",
        "2001-01-01",
        "0.5",
        "3",
        "7.5",
        "1e9",
    ),
    *(
        "{a: b}",
        "a: b: c",
        "&a [*a]",
        "*a",
        "!!python/object:os.system x",
        "!!binary x",
        "[" * 30,
        "[" * 3000,
        "{" * 30,
        "'",
        '"',
        "\\",
    ),
    *(
        "a\x00b",
        "\x1b[31m",
        "\udcff",
        "a\nb",
        "../..",
        "/",
        ".",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "re:(",
        "[re:(]",
        "['re:(']",
    ),
    *(
        "=",
        "--",
        "-",
        "@x",
        "%s",
        "{0}",
        "$HOME",
        "None",
        "csst",
        "dense",
        "multilevel",
        "shadow",
        "masked",
        "pooled",
        "halving",
        "iht",
        "os.system",
        "gossamer.nothing",
        "a.b.c",
    ),
]
METHODS = [
    ("csst", "sgd"),
    ("rigl", "adamw"),
    ("set", "sgd"),
    ("gmp", "sgd"),
    ("snfs", "sgd"),
    ("multilevel", "adabreg"),
    ("dense", "adamw"),
]
METHODS += [("proximal", name) for name in ("proxsgd", "iht", "rda", "xrda", "linbreg", "adabreg")]

PENALTIES = {"proxsgd": "l1", "rda": "nonnegativel1", "xrda": "logl1", "linbreg": "l1", "adabreg": "l1"}


def lines(cases: int, rng: random.Random) -> list[Tally]:
    """All three kinds."""
    kinds: dict[str, Callable[[Path, random.Random], tuple[list[str], str]]] = {
        "command lines": command_line,
        "configuration files": configuration,
        "damaged folders": Damaged().folder,
    }
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in kinds.items():
            tally = Tally(kind)
            for case in range(cases // len(kinds)):
                place = Path(folder) / f"{case}"
                place.mkdir()
                argv, what = make(place, rng)
                judge(tally, argv, place, what)
                shutil.rmtree(place, ignore_errors=True)
            tallies.append(tally)
    return tallies


def judge(tally: Tally, argv: list[str], place: Path, what: str) -> None:
    """Runs a command in a folder of its own."""

    def work() -> int:
        os.chdir(place)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
        try:
            return command(*argv)()
        except SystemExit as end:  # --help
            return int(end.code or 0)

    tally.cases += 1
    code, said = forked(work)
    if "Traceback" in said or code not in (0, 1, 2, 130):
        tally.add("tracebacks", f"{what}: exit code {code}: {said[-400:]!r}")
    elif len(said) > LONGEST or (code == 2 and not said.strip()):
        tally.add("foreign", f"{what}: {len(said)} letters: {said[:100]!r}")


# -------------------------------------------------------------------- command lines


def command_line(place: Path, rng: random.Random) -> tuple[list[str], str]:
    """A run or another command with a few arguments that are none."""
    if rng.random() < 0.25:
        name = rng.choice(
            ["sweep", "report", "recover phase", "recover planted", "recover mnist", "doctor", "run", "rum", ""]
        )
        words = [
            rng.choice([*NASTY, f"--{rng.choice(['jobs', 'threads', 'out', 'x'])}={rng.choice(NASTY)}"])
            for _ in range(rng.randint(0, 3))
        ]
        return [*name.split(" "), *words], repr([name, *(word[:40] for word in words)])
    method, optimizer = rng.choice(METHODS)
    argv = ["run", *TINY, "--null_models=false", f"--method={method}", f"--optimizer={optimizer}"]
    argv += ["--layout=shadow"] if method == "proximal" else []
    argv += (
        [f"--optimizer.penalty={PENALTIES[optimizer]}", "--optimizer.penalty.lam=0.02"]
        if optimizer in PENALTIES
        else []
    )
    chosen = {"method": method, "optimizer": optimizer, "task": "planted", "model": "mlp", "target": "targetdensity"}
    keys = [*SETTINGS, "optimizer.penalty", "optimizer.penalty.lam", "out", "resume", "change", "help", "nonsense", ""]
    keys += [f"{kind}.{key}" for kind, name in chosen.items() for key in settings_of(kind, CATALOG[kind][name])] * 2
    more = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key, value = rng.choice(keys), rng.choice(NASTY)
        more += [f"--{key}={value}"] if rng.random() < 0.8 else [f"--{key}", value]
    return [*argv, *more], repr([method, optimizer, *(word[:60] for word in more)])


# -------------------------------------------------------------------- configuration files

RUN = """task: {name: planted, features: 12, relevant: 6, examples: 60}
model: {name: mlp, widths: [16, 16]}
method: {name: csst, every: 4, last_every: 5, window: 3}
optimizer: {name: sgd, lr: 0.1}
density: 0.3
batch: 16
epochs: 1
seed: 0
threads: 1
"""
SWEEP = """base:
  {task: {name: planted, features: 12, relevant: 6, examples: 60}, model.widths: [8],
  density: 0.3, batch: 16, epochs: 1, threads: 1}
grid:
  - {method: dense, seed: [0]}
"""
BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def configuration(place: Path, rng: random.Random) -> tuple[list[str], str]:
    """A file that is nearly a configuration of a run or a sweep."""
    sweep = rng.random() < 0.4
    name, damage = rng.choice(sorted(DAMAGES.items()))
    content = damage((SWEEP if sweep else RUN).encode(), rng)
    (place / "c.yaml").write_bytes(content)
    argv = ["sweep", "c.yaml"] if sweep else ["run", "c.yaml"]
    return argv, f"{argv[0]}, {name}: {content[:300]!r}"


def _value(content: bytes, rng: random.Random) -> bytes:
    """Another value for one key."""
    parts = content.split(b": ")
    at = rng.randrange(1, len(parts))
    old = parts[at]
    end = min((i for i in (old.find(c) for c in b",}\n") if i >= 0), default=len(old))
    parts[at] = rng.choice(NASTY).encode(errors="surrogatepass") + old[end:]
    return b": ".join(parts)


def _key(content: bytes, rng: random.Random) -> bytes:
    """Another key."""
    words = content.split(b":")
    at = rng.randrange(len(words) - 1)
    words[at] += rng.choice([b"x", b".", b".x", b" y", b"\xff", b"\x00", b"1"])
    return b":".join(words)


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """One byte is another."""
    content_ = bytearray(content)
    content_[rng.randrange(len(content_))] = rng.randrange(256)
    return bytes(content_)


ROOTS = [b"", b"- 1", b"3", b"text", b"null", b"[]", b"--- {}\n--- {}", b"\x00", b"\xff\xfe", b"%YAML 9.9\n--- {}"]
KEYS = [b"1: 2", b"[1]: 2", b"{a: b}: 2", b"null: 2", b"? [a]\n: b", b"true: 1", b"<<: {a: b}"]
TAGS = [
    b"x: !!python/object/apply:os.system [ls]",
    b"x: !!set {a}",
    b"x: !!timestamp 2001-99-99",
    b"x: !a b",
    b"x: !!binary z",
]
PARTS = [
    b"method: [a]",
    b"model: {name: {a: b}}",
    b"task: 3",
    b"optimizer: null",
    b"method: {}",
    b"method: {name: csst, csst: {}}",
]
SWEEPS = [
    b"out: 3",
    b"out: [a]",
    b"grid: 3",
    b"grid: {a: []}",
    b"base: []",
    b"grid: [[]]",
    b"out: /dev/null",
    b"grid: [{seed: {a: b}}]",
]
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "another value": _value,
    "two other values": lambda c, rng: _value(_value(c, rng), rng),
    "another key": _key,
    "another byte": _bytes,
    "a line twice": lambda c, rng: c + rng.choice(c.splitlines()) + b"\n",
    "cut off": lambda c, rng: c[: rng.randrange(len(c))],
    "a bomb": lambda c, rng: c + BOMB.encode(),
    "a loop": lambda c, rng: c + b"exclude: &a [*a]\n",
    "deep": lambda c, rng: c + b"exclude: " + b"[" * rng.choice([25, 1000, 100_000]) + b"\n",
    "deep by indentation": lambda c, rng: b"".join(b" " * i + b"a:\n" for i in range(500)),
    "no mapping": lambda c, rng: rng.choice(ROOTS),
    "huge": lambda c, rng: c + b"# x\n" * 300_000,
    "keys that are none": lambda c, rng: c + rng.choice(KEYS),
    "tags": lambda c, rng: c + rng.choice(TAGS),
    "a part that is none": lambda c, rng: c + rng.choice(PARTS),
    "a sweep of nothing": lambda c, rng: rng.choice(SWEEPS),
    "a sweep without end": lambda c, rng: (
        b"grid:\n  - {" + b", ".join(b"k%d: [1,2,3,4,5,6,7,8,9]" % i for i in range(30)) + b"}\n"
    ),
    "a long name": lambda c, rng: b"grid:\n  - {exclude: [[" + b"fc1, " * 100 + b"fc2]]}\n",
}


# -------------------------------------------------------------------- damaged folders


class Damaged:
    """Folders of runs, one file of which is not what it was; made once."""

    def __init__(self):
        self.made: tempfile.TemporaryDirectory[str] | None = None

    def folder(self, place: Path, rng: random.Random) -> tuple[list[str], str]:
        """Damages one file of a stopped or finished run, or of a sweep, and asks for something."""
        if self.made is None:
            self.made = tempfile.TemporaryDirectory()
            self._make(Path(self.made.name))
        shutil.copytree(self.made.name, place, dirs_exist_ok=True)
        which = rng.choice(["finished", "stopped", "group", "out"])
        path = rng.choice(sorted(p for p in (place / which).rglob("*") if p.is_file()))
        how = self._damage(path, rng)
        asks: dict[str, list[list[str]]] = {"out": [["sweep", "s.yaml", "--out", "out"], ["report", "out"]]}
        argv = rng.choice(
            asks.get(
                which, [["run", "--out", which, "--resume"], ["run", "--out", which, "--resume"], ["report", which]]
            )
        )
        return argv, f"{argv}: {path.relative_to(place)} {how}"

    def _make(self, place: Path) -> None:
        (place / "s.yaml").write_text(SWEEP)
        alone = [*TINY, *CSST, "--null_models=false"]
        for argv in (
            ["--out=finished", *alone],
            ["--out=group", *TINY, *CSST, "--epochs=1"],
            ["--out=stopped", *alone],
        ):
            forked(lambda argv=argv: (os.chdir(place), command("run", *argv)())[1])
        (place / "stopped" / "result.json").unlink()
        forked(lambda: (os.chdir(place), command("sweep", "s.yaml", "--out", "out")())[1])

    def _damage(self, path: Path, rng: random.Random) -> str:
        content = path.read_bytes()
        how = rng.choice(
            ["empty", "cut off", "zeros", "noise", "a folder", "gone", "a byte", "json of nothing", "nested"]
        )
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how != "gone":
            path.write_bytes(_damaged(content, how, rng))
        return how


def _damaged(content: bytes, how: str, rng: random.Random) -> bytes:
    damages: dict[str, Any] = {
        "empty": lambda: b"",
        "cut off": lambda: content[: rng.randrange(len(content) + 1)],
        "zeros": lambda: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
        "noise": lambda: rng.randbytes(300),
        "a byte": lambda: _bytes(content, rng) if content else b"x",
        "json of nothing": lambda: rng.choice(
            [b"[]", b"3", b"{}", b'{"status": "finished"}', b'{"status": [1]}', b"null", b"NaN"]
        ),
        "nested": lambda: b"[" * 100_000,
    }
    return damages[how]()
