"""Predicted and measured recall of sensing on the Fashion-MNIST MLP (784-512-512-10, density 0.05), along its training.

    GOSSAMER_DATA=... python benchmarks/diagnosis.py [--out DIR]
    python benchmarks/diagnosis.py --isometry            of Gaussian matrices 256 x 512, five of them, 2000 supports each

At each stage the gradient of 200 batches at the present weights is the truth; sensing is predicted from ``window`` batches of it. Writes
DIR/recall.csv and prints the table; ``n_grow`` is a hundredth of the zeros.
"""

import argparse
import csv
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.cli.tasks import FashionMNIST
from gossamer.recover import diagnose


def isometry() -> None:
    """Prints the isometry constants of Gaussian matrices: mean and range over five of them."""
    found = {s: [] for s in (4, 8, 16, 32)}
    for seed in range(5):
        A = torch.randn(256, 512, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for s, values in found.items():
            values.append(diagnose.isometry(A, s, supports=2000))
    print(
        "| s | sampled, mean over supports | sampled, largest | improved by exchanges | Gershgorin | edge law |\n|---|---|---|---|---|---|"
    )
    for s, values in found.items():
        columns = ([getattr(v, name) for v in values] for name in ("mean", "sampled", "improved", "gershgorin", "edge"))
        print(
            f"| {s} | "
            + " | ".join(
                f"{sum(c) / len(c):.3f} ({min(c):.3f} to {max(c):.3f})" if max(c) > min(c) else f"{c[0]:.3f}"
                for c in columns
            )
            + " |"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/recover/diagnosis")
    parser.add_argument("--stages", type=int, nargs="*", default=[0, 100, 1000, 3000])
    parser.add_argument("--isometry", action="store_true", help="isometry constants in place of recall")
    given = parser.parse_args()
    if given.isometry:
        return isometry()
    data = FashionMNIST().load()
    X, Y = data.inputs(data.train_x).flatten(1), data.train_y
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    gs.sparsify(net, density=0.05, batch_last=False)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    layers = gs.sparse_layers(net)

    def backward(where: torch.Tensor) -> None:
        net.zero_grad()
        F.cross_entropy(net(X[where]), Y[where]).backward()

    rows, step = [], 0
    for stage in given.stages:
        while step < stage:
            backward(torch.randint(len(X), (128,)))
            opt.step()
            step += 1
        parts = torch.randperm(len(X))[: 200 * 128].split(128)
        recorded = diagnose.record_operands(layers, [partial(backward, where) for where in parts])
        for name, operands in recorded.items():
            s = layers[name].support
            n_grow = round(0.01 * (s.total - s.n))
            for fraction in (0.1, 0.3, 1.0):
                for window in (1, 10):
                    measured = diagnose.measured_recall(
                        operands, s, n_grow=n_grow, fraction=fraction, window=window, trials=8
                    )
                    found = diagnose.sensing(
                        operands[:window],
                        s,
                        n_grow=n_grow,
                        fraction=fraction,
                        window=window,
                        measured=measured,
                        name=name,
                    )
                    rows.append({"step": stage, "layer": name, "fraction": fraction, "window": window, "measured": measured,
                                 "predicted": found.recall, "conditioning": found.conditioning, "snr": found.snr})  # fmt: skip
                    print(stage, name, found.sentence, flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "recall.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for fraction in (0.1, 0.3, 1.0):
        for window in (1, 10):
            errors = [
                abs(r["predicted"] - r["measured"]) for r in rows if (r["fraction"], r["window"]) == (fraction, window)
            ]
            print(
                f"fraction {fraction}, window {window}: mean error {sum(errors) / len(errors):.3f}, largest {max(errors):.3f}"
            )


if __name__ == "__main__":
    main()
