"""Train digits with 95 % zeros by CSST, beside a random support of the same size.

python examples/digits_csst.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import gossamer as gs


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 images of 8 x 8 pixels, shuffled: (1797, 64) and (1797,)."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]


def train(topology: gs.TopologyLike, steps: int, seed: int = 0) -> float:
    """Test accuracy after so many steps."""
    torch.manual_seed(seed)
    x, y = data()
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    gs.sparsify(net, density=0.05)
    opt = torch.optim.SGD(gs.parameter_groups(net, weight_decay=5e-4), lr=0.1, momentum=0.9, nesterov=True)
    rewirer = gs.Rewirer(net, opt, topology)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        batch = torch.randint(1200, (64,))
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        rewirer.step()
        schedule.step()
        opt.zero_grad(set_to_none=True)
    return (net(x[1200:]).argmax(1) == y[1200:]).float().mean().item()


def main(steps: int = 1000) -> None:
    """Prints one line a method."""
    csst = gs.CSST(stop=3 * steps // 4, every=steps // 20, last_every=steps // 10, window=max(1, steps // 100))
    for name, topology in (("CSST", csst), ("static", gs.Static())):
        print(f"{name:8}{100 * train(topology, steps):.2f} %")


if __name__ == "__main__":
    main()
