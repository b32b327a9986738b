"""Multilevel LinBreg: zeros by mirror descent, and a dense gradient in one of ten steps.

python examples/multilevel.py
"""

import torch
import torch.nn.functional as F
from digits_csst import data
from torch import nn

import gossamer as gs


def main(steps: int = 1000, coarse: int = 9) -> None:
    """Prints accuracy, density and training FLOPs."""
    torch.manual_seed(0)
    x, y = data()
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    gs.sparsify(net, density=0.1)  # compact values: a coarse step never sees the dense size
    gs.reinitialise_(net, gain=0.5, positive_bias=0.5)
    rule = gs.LinBreg(gs.L1(0.01), momentum=0.9)
    opt = gs.SparseOptimizer(gs.parameter_groups(net), rule, lr=0.3, allow_compact=True)
    multilevel = gs.Multilevel(net, opt, coarse=coarse, fine_lr_scale=coarse + 1)
    target = gs.TargetDensity(opt, density=0.05, steps=steps, multilevel=multilevel, every=2 * (coarse + 1))
    ledger = gs.Ledger(net, x[:1], optimizer=opt)
    for _ in range(steps):
        batch = torch.randint(1200, (64,))
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        ledger.step(64, multilevel)
        multilevel.step()
        target.step()
        opt.zero_grad(set_to_none=True)
    accuracy = (net(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
    density = sum(layer.support.n for layer in gs.sparse_layers(net).values()) / (64 * 256 + 256 * 10)
    print(f"{100 * accuracy:.2f} %, density {density:.4f}, FLOPs {ledger.ratio:.4f} of dense")


if __name__ == "__main__":
    main()
