"""Compare methods at equal FLOPs: every method trains until the ledger has counted the same budget.

python examples/equal_flops.py
"""

import torch
import torch.nn.functional as F
from digits_csst import data
from torch import nn

import gossamer as gs


def train(topology: gs.TopologyLike, density: float, budget: float, seed: int) -> tuple[float, int]:
    """Test accuracy and steps; ``budget`` in FLOPs."""
    torch.manual_seed(seed)
    x, y = data()
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    if density < 1.0:
        gs.sparsify(net, density=density)
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    rewirer = gs.Rewirer(net, opt, topology) if density < 1.0 else opt
    ledger, steps = gs.Ledger(net, x[:1], optimizer=opt), 0
    while ledger.flops.total < budget:
        batch = torch.randint(1200, (64,))
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        ledger.step(64, rewirer if density < 1.0 else None)
        rewirer.step()
        opt.zero_grad(set_to_none=True)
        steps += 1
    return (net(x[1200:]).argmax(1) == y[1200:]).float().mean().item(), steps


def main(budget: float = 2e9, seeds: int = 3) -> None:
    """Prints mean accuracy and steps of each method."""
    methods = {
        "dense": (gs.Static(), 1.0),
        "static": (gs.Static(), 0.05),
        "SET": (gs.SET(stop=600, every=25, drop_fraction=0.5), 0.05),
        "RigL": (gs.RigL(stop=600, every=25, drop_fraction=0.5), 0.05),
        "CSST": (gs.CSST(stop=600, every=25, last_every=50), 0.05),
    }
    for name, (topology, density) in methods.items():
        runs = [train(topology, density, budget, seed) for seed in range(seeds)]
        print(f"{name:8}{100 * sum(a for a, _ in runs) / seeds:.2f} %  {runs[0][1]} steps")


if __name__ == "__main__":
    main()
