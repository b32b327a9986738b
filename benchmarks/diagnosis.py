"""How accurate is the predicted recall of sensing, during the training of an MLP on Fashion-MNIST?

    GOSSAMER_DATA=... python benchmarks/diagnosis.py --out DIR
    python benchmarks/diagnosis.py --isometry            isometry constants of five Gaussian matrices 256 x 512

The network is 784-512-512-10 at density 0.05. At each stage the true gradient is that of 200 batches at the current
weights. The recall is predicted from ``window`` of these batches; a hundredth of the zeros would grow. The script
writes DIR/recall.csv and prints a table.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.cli.tasks import FashionMNIST
from gossamer.recover import diagnose

FRACTIONS, WINDOWS = (0.1, 0.3, 1.0), (1, 10)
Row = dict[str, Any]  # one layer at one stage, with one fraction and window


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/recover/diagnosis", metavar="DIR", help="where recall.csv is written")
    p.add_argument("--stages", type=int, nargs="*", default=[0, 100, 1000, 3000], help="optimizer steps")
    p.add_argument("--isometry", action="store_true", help="isometry constants in place of recall")
    args = p.parse_args(argv)
    if args.isometry:
        isometry()
        return 0
    rows = recall(args.stages)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "recall.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for fraction in FRACTIONS:
        for window in WINDOWS:
            mine = [row for row in rows if (row["fraction"], row["window"]) == (fraction, window)]
            errors = [abs(row["predicted"] - row["measured"]) for row in mine]
            mean, largest = sum(errors) / len(errors), max(errors)
            print(f"fraction {fraction}, window {window}: mean error {mean:.3f}, largest {largest:.3f}")
    return 0


def isometry() -> None:
    """Prints the isometry constants of Gaussian matrices: mean and range over five of them."""
    found = {s: [] for s in (4, 8, 16, 32)}
    for seed in range(5):
        A = torch.randn(256, 512, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for s, values in found.items():
            values.append(diagnose.isometry(A, s, supports=2000))
    print("| s | sampled, mean over supports | sampled, largest | improved by exchanges | Gershgorin | edge law |")
    print("|---|---|---|---|---|---|")
    for s, values in found.items():
        names = ("mean", "sampled", "improved", "gershgorin", "edge")
        print(f"| {s} | " + " | ".join(_ranged([getattr(v, name) for v in values]) for name in names) + " |")


def _ranged(values: Sequence[float]) -> str:
    """Mean and range."""
    if max(values) == min(values):
        return f"{values[0]:.3f}"
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def recall(stages: Sequence[int]) -> list[Row]:
    """Trains from stage to stage, and compares at each."""
    data = FashionMNIST().load()
    X, Y = data.inputs(data.train_x).flatten(1), data.train_y
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    gs.sparsify(net, density=0.05, batch_last=False)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    layers = gs.sparse_layers(net)

    def backward(where: Tensor) -> None:
        net.zero_grad()
        F.cross_entropy(net(X[where]), Y[where]).backward()

    rows: list[Row] = []
    step = 0
    for stage in stages:
        while step < stage:
            backward(torch.randint(len(X), (128,)))
            opt.step()
            step += 1
        parts = torch.randperm(len(X))[: 200 * 128].split(128)
        passes: list[Callable[[], object]] = [partial(backward, where) for where in parts]
        for name, operands in diagnose.record_operands(layers, passes).items():
            rows += compared(stage, name, operands, layers[name].support)
    return rows


def compared(stage: int, name: str, operands: list[tuple[Tensor, Tensor]], s: gs.Support) -> list[Row]:
    """Predicted and measured recall of one layer, for every fraction and window."""
    rows, n_grow = [], round(0.01 * (s.total - s.n))
    for fraction in FRACTIONS:
        for window in WINDOWS:
            how: dict[str, Any] = {"n_grow": n_grow, "fraction": fraction, "window": window}
            measured = diagnose.measured_recall(operands, s, trials=8, **how)
            found = diagnose.sensing(operands[:window], s, measured=measured, name=name, **how)
            rows.append(
                {"step": stage, "layer": name, "fraction": fraction, "window": window, "measured": measured}
                | {"predicted": found.recall, "conditioning": found.conditioning, "snr": found.snr}
            )
            print(stage, name, found.sentence, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
