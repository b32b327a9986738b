"""How much memory and time does recovery need on a gated-ReLU operator that is far too large to store?

    python benchmarks/recovery.py                                  n = 2000, d = 1000, p = 10 000, s = 500
    python benchmarks/recovery.py --sweep 100 500 1000 2000        the peak over s, and DIR/memory.png (matplotlib)

The coefficients are planted, in float64, and the solver is aiht. Each point runs in a separate process, so that its
peak of resident bytes includes no other point. Results are written to ``--out DIR``.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(n: int, d: int, p: int, s: int, steps: int) -> dict[str, float]:
    """Measures one point, in this process."""
    import torch

    from gossamer.recover import GatedReLU, aiht

    before = peak_bytes()
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=rng, dtype=torch.float64)
    begin = time.perf_counter()
    A = GatedReLU.random(X, p, seed=0)
    built = time.perf_counter() - begin
    ids = torch.randint(p * d, (s,), generator=rng).unique()
    y = A.columns(ids) @ torch.randn(ids.numel(), generator=rng, dtype=torch.float64)
    ticks: list[float] = []
    found = aiht(A, y, s, steps=steps, on_step=lambda *_: ticks.append(time.perf_counter()))
    seconds = sorted(b - a for a, b in zip(ticks[:-1], ticks[1:], strict=True))
    return {
        "n": n, "d": d, "p": p, "s": s, "dense bytes": 8 * n * d * p,
        "peak bytes": peak_bytes(), "peak bytes before": before,
        "seconds to build": built, "seconds per iteration": seconds[len(seconds) // 2] if seconds else float("nan"),
        "residual": found.residuals[-1] / float(y.norm()), "threads": torch.get_num_threads(),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("n", 2000), ("d", 1000), ("p", 10_000), ("s", 500), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sweep", type=int, nargs="*")
    parser.add_argument("--out", default="runs/recover/memory")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        print(json.dumps(measure(given.n, given.d, given.p, given.s, given.steps)))
        return 0
    rows = []
    for s in given.sweep or [given.s]:
        sizes = [
            f"--{name}={value}"
            for name, value in (("n", given.n), ("d", given.d), ("p", given.p), ("s", s), ("steps", given.steps))
        ]
        done = subprocess.run([sys.executable, __file__, "--one", *sizes], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print(json.dumps(rows[-1]), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / ("sweep.json" if given.sweep else "memory.json")).write_text(json.dumps(rows, indent=2) + "\n")
    if given.sweep:
        picture(rows, f"n = {given.n}, d = {given.d}, p = {given.p}", out / "memory.png")
    return 0


def picture(rows: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Peak of resident bytes over the number of non-zeros."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4))
    peaks = [(r["peak bytes"] - r["peak bytes before"]) / 2**20 for r in rows]
    axes.plot([r["s"] for r in rows], peaks, marker="o")
    axes.set(xlabel="non-zeros s", ylabel="peak resident MiB over import", title=title, ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
