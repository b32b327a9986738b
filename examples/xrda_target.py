"""Start dense, end with 3 % of the weights: xRDA, and a target density in place of a search over lambda.

python examples/xrda_target.py
"""

import torch
import torch.nn.functional as F
from digits_csst import data
from torch import nn

import gossamer as gs


def main(steps: int = 1500, density: float = 0.03) -> None:
    """Prints what each measurement saw, and the accuracy."""
    torch.manual_seed(0)
    x, y = data()
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    gs.sparsify(net, density=1.0, layout="shadow", init="keep")  # dense storage; the non-zeros are the support
    rule = gs.XRDA(gs.LogL1(1e-5))
    opt = gs.SparseOptimizer(gs.parameter_groups(net), rule, lr=gs.cosine(0.5, steps))
    target = gs.TargetDensity(opt, density=density, steps=steps)
    for _ in range(steps):
        batch = torch.randint(1200, (64,))
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        opt.step()
        target.step()
        opt.zero_grad(set_to_none=True)
    for line in target.log[:: max(1, len(target.log) // 8)]:
        print(f"step {line.t:5}  density {line.density:.4f}  wanted {line.target:.4f}  strength {line.strength:.3g}")
    accuracy = (net(x[1200:]).argmax(1) == y[1200:]).float().mean().item()
    print(f"{100 * accuracy:.2f} % with {100 * target.measure():.2f} % of the weights")


if __name__ == "__main__":
    main()
