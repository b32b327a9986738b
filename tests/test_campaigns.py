"""The campaigns at small scale, in a fresh process that may fork.

How to run them large: tests/campaigns/campaign.py.
"""

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer as gs
from campaigns import files
from gossamer import checkpoint
from gossamer.checkpoint.file import seal

CAMPAIGN = Path(__file__).parent / "campaigns" / "campaign.py"


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, and asks /proc what an open file is called")
def test_nothing_hostile_does_harm():
    sizes = {"flips": 200, "mutations": 120, "saves": 20, "kills": 3, "power-cuts": 2, "lines": 15}
    arguments = [word for name, cases in sizes.items() for word in (f"--{name}", str(cases))]
    done = subprocess.run([sys.executable, str(CAMPAIGN), *arguments], capture_output=True, text=True)
    full = "--flips 5000 --mutations 5000 --saves 500 --kills 200 --power-cuts 100 --lines 500"
    print(f"{done.stdout}\nthe same at full size: python {CAMPAIGN} {full}")
    assert done.returncode == 0, done.stdout + done.stderr


IN_PLACE = """
import random, sys, time
from contextlib import contextmanager
sys.path.insert(0, sys.argv[1])
from campaigns import kills
from gossamer.checkpoint import file

@contextmanager
def in_place(path):
    path.parent.mkdir(exist_ok=True)
    yield path

@contextmanager
def beside(path):
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{time.time_ns()}")
    yield temporary
    temporary.rename(path)

for mutant, how in ((in_place, "differing"), (beside, "stray")):
    file.replacing = mutant
    assert kills.saves(30, random.Random(0))[0].wrong.get(how, 0) > 3, mutant
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, and asks /proc what an open file is called")
def test_kills_notice_a_save_that_is_not_atomic_and_one_that_leaves_litter():
    done = subprocess.run([sys.executable, "-c", IN_PLACE, str(CAMPAIGN.parents[1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_campaign_notices_what_it_is_for(monkeypatch):
    """Mutants: a load without the digest, one that raises foreign exceptions, one that changes before it refuses."""
    load = checkpoint.load

    def believes(path, model, **parts):
        with contextlib.suppress(EOFError, AssertionError):
            seal(Path(path))
        return load(path, model, **parts)

    def lets_out(path, model, **parts):
        try:
            return load(path, model, **parts)
        except gs.UsageError as refusal:
            raise KeyError(str(refusal)) from refusal

    def changes(path, model, **parts):
        parts["optimizer"].param_groups[0]["lr"] *= 2
        return load(path, model, **parts)

    for mutant, how in ((believes, "loaded"), (lets_out, "foreign"), (changes, "changed")):
        monkeypatch.setattr(checkpoint, "load", mutant)
        assert sum(tally.wrong.get(how, 0) for tally in files.flips(40, random.Random(0))) > 10
