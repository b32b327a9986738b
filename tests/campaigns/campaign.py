"""Everything hostile at once: damaged checkpoints, kills, power cuts, command lines. Prints a table; exit code 1 if
anything went wrong.

    export PYTHONPATH=src python tests/campaigns/campaign.py --flips 5000 --mutations 5000 --saves 500 --kills 200
    --power-cuts 100 --lines 500 --seed 0

Small numbers of cases are run by tests/test_campaigns.py. Linux only: it forks, and asks /proc.
"""

import argparse
import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)  # the parent only waits

import torch  # noqa: E402

from campaigns import files, kills, lines  # noqa: E402
from campaigns.tally import Tally, table  # noqa: E402

CAMPAIGNS = {
    "flips": files.flips,
    "mutations": files.mutations,
    "saves": kills.saves,
    "kills": kills.kills,
    "power_cuts": kills.power_cuts,
    "lines": lines.lines,
}


def main() -> int:
    """Runs as many cases as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CAMPAIGNS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=0, metavar="N", help=f"cases of {name.replace('_', ' ')}"
        )
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    tallies: list[Tally] = []
    for name, run in CAMPAIGNS.items():
        begun = time.perf_counter()
        if given[name]:
            tallies += run(given[name], random.Random(f"{name} {given['seed']}"))
            print(f"{name}: {given[name]} cases, {time.perf_counter() - begun:.0f} s", flush=True)
    print("\n" + table(tallies))
    return 1 if any(tally.wrong for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
