"""What do the sensing and the events of CSST cost?

    python benchmarks/sensing.py --json sensing.json --markdown docs/speed.md

Times the steps of every kind in a short cycle of CSST, at density 0.05: plain steps; a step that draws the coordinates
at its end; sensing steps, the last of them with the event; and the step after it, which includes delayed work of the
event. The cost of CSST's default schedule follows from these times. Fraction and decay are the defaults. The number of
exchanged blocks is that of the first event, the largest. The networks and the gate are those of ``training.py``.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

import gossamer as gs
import networks
import report
from gate import Mismatch
from networks import Trainee, batch_of, sparse_network
from report import Result, Table
from timing import Timing, millis

DENSITY, STEPS = 0.05, 30_000  # of the default schedule
CYCLE, CYCLE_QUICK = (8, 3), (5, 2)  # steps of a cycle, and of its window


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return report.run(networks.parsed(networks.parser(__doc__), argv), measured, {"sensing": table})


def measured(args: argparse.Namespace) -> Result:
    """Measures all networks: first all gates, then the times."""
    for name in args.models:
        networks.gate(name, DENSITY, args)
    return {"batch": args.batch, "sensing": [sensing(name, args) for name in args.models]}


def sensing(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The times of one network, and the resulting cost of the default schedule."""
    print(f"timing the sensing of {name}", file=sys.stderr)
    trainee = Trainee(sparse_network(name, DENSITY, args), batch_of(name, args), args.fused)
    taken, exchanged = timed(trainee, args)
    if not exchanged:
        raise Mismatch(f"{name}: the event exchanged no block, so its time would have no meaning")
    plain, draw, one, event, after = (t.seconds for t in taken.values())
    rewiring, plan = event - one + after - plain, schedule(gs.CSST(STEPS).resolve(STEPS))
    extra = plan["windows"] * (draw - plain) + plan["sensing steps"] * (one - plain)
    return {
        "model": name,
        "density": DENSITY,
        "rule": args.budget_rule,
        **{kind: t._asdict() for kind, t in taken.items()},
        "schedule": plan,
        "blocks exchanged": exchanged,
        "sensing step over plain": one / plain,
        "event in plain steps": rewiring / plain,
        "sensing, amortised": extra / (plan["stop"] * plain),
        "events, amortised": plan["events"] * rewiring / (plan["stop"] * plain),
        "kernels": networks.kernels_of(trainee.net),
    }


def timed(trainee: Trainee, args: argparse.Namespace) -> tuple[dict[str, Timing], int]:
    """Seconds of each kind of step over whole cycles, and the number of blocks that an event exchanges."""
    every, window = CYCLE_QUICK if args.quick else CYCLE
    topology = gs.CSST(10**6, every, every, window).resolve(None)
    rewirer = gs.Rewirer(trainee.net, trainee.optimizer, topology, rng=torch.Generator().manual_seed(args.seed))
    samples: dict[str, list[float]] = {"plain": [], "draw": [], "sensing": [], "event": [], "after": []}
    exchanged, begin, cycles = 0, time.perf_counter(), 0
    while cycles < (2 if args.quick else 6) or time.perf_counter() - begin < args.budget:
        for _ in range(every):
            kind = _kind(topology, rewirer.t + 1)
            start = time.perf_counter()
            trainee.loss().backward()
            rewirer.step()
            trainee.optimizer.zero_grad(set_to_none=True)
            if cycles:  # the first cycle warms up
                samples[kind].append(time.perf_counter() - start)
            exchanged = max(exchanged, sum(rewirer.last.grown.values()) if rewirer.last else 0)
        cycles += 1
    return {kind: Timing.of(values) for kind, values in samples.items()}, exchanged


def schedule(topology: gs.Topology) -> dict[str, int]:
    """The numbers of windows, sensing steps and events of a topology."""
    steps = range(1, topology.stop + 1)
    asked = [found for t in steps if (found := topology.sense(t)) is not None]
    return {
        "stop": topology.stop,
        "windows": sum(found.fresh for found in asked),
        "sensing steps": len(asked),
        "events": sum(topology.when(t) is not None for t in steps),
    }


def _kind(topology: gs.Topology, t: int) -> str:
    """The kind of step t: an event, sensing, the draw for the next step, the step after an event, or plain."""
    if topology.when(t) is not None:
        return "event"
    if topology.sense(t) is not None:
        return "sensing"
    if topology.sense(t + 1) is not None:
        return "draw"
    return "plain" if topology.when(t - 1) is None else "after"


def table(result: Result) -> Table:
    """The additional time of sensing and events."""
    columns = ["network", "plain step, ms", "with sensing", "spread", "sensing, amortised"]
    columns += ["an event, plain steps", "events, amortised"]
    rows = []
    for found in result["sensing"]:
        plain, one = Timing(**found["plain"]), Timing(**found["sensing"])
        rows.append(
            [found["model"], millis(plain.seconds), millis(one.seconds), f"±{plain.spread + one.spread:.0%}"]
            + [f"{found['sensing, amortised']:.2%}", f"{found['event in plain steps']:.1f}"]
            + [f"{found['events, amortised']:.2%}"]
        )
    first, plan = result["sensing"][0], result["sensing"][0]["schedule"]
    names = sorted({name for found in result["sensing"] for name in found["kernels"]})
    notes = [
        f"CSST at density {first['density']:g}, budget {first['rule']}, batch {result['batch']}. Its default schedule "
        f"to step {plan['stop']:,}: {plan['windows']} windows, {plan['sensing steps']:,} sensing steps, "
        f"{plan['events']} events.",
        "Sensing, amortised: the draws of coordinates and what sensing steps take beyond plain ones, over so many "
        "plain steps.",
        "An event: what a sensing step with the event takes beyond one without, and the step after it beyond a plain "
        f"one, at the largest amount (that of the first event). Kernels: {', '.join(names)}.",
    ]
    return Table("CSST: sensing and events", columns, rows, notes)


if __name__ == "__main__":
    sys.exit(main())
