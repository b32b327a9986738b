"""Which operators take most time of a sparse training step?

    python benchmarks/hot_spots.py --models vgg16-bn --density 0.1

Prints torch's profile of one step: the 25 most expensive operators. The networks and the gate are those of
``training.py``. Two steps without measurement come first.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

import gossamer as gs
import networks
import timing
from gate import Mismatch
from networks import Trainee, batch_of, sparse_network


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    p = networks.parser(__doc__)
    p.add_argument("--density", type=float, default=0.1, help="of all weights of the layers that are replaced")
    args = networks.parsed(p, argv)
    timing.prepare(args.threads, args.seed)
    try:
        for name in args.models:
            networks.gate(name, args.density, args)
            print(profile(name, args))
    except (Mismatch, gs.UsageError) as refusal:
        print(refusal, file=sys.stderr)
        return 1 if isinstance(refusal, Mismatch) else 2
    return 0


def profile(name: str, args: argparse.Namespace) -> str:
    """torch's table of one step by operator."""
    trainee = Trainee(sparse_network(name, args.density, args), batch_of(name, args), args.fused)
    for _ in range(2):
        trainee.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        trainee.step()
    table = watched.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
    return f"{name}, density {args.density:g}, batch {args.batch}\n{table}"


if __name__ == "__main__":
    sys.exit(main())
