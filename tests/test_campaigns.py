"""The campaigns at small scale, in a fresh process that may fork. How to run them large: tests/campaigns/campaign.py."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parent / "campaigns" / "campaign.py"


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, and asks /proc what an open file is called")
def test_nothing_hostile_does_harm():
    sizes = {"flips": 200, "mutations": 120, "kills": 3, "power-cuts": 2, "lines": 24}
    arguments = [word for name, cases in sizes.items() for word in (f"--{name}", str(cases))]
    done = subprocess.run([sys.executable, str(CAMPAIGN), *arguments], capture_output=True, text=True)
    print(f"{done.stdout}\nthe same at full size: python {CAMPAIGN} --flips 5000 --mutations 5000 --kills 200 --power-cuts 100 --lines 500")
    assert done.returncode == 0, done.stdout + done.stderr
