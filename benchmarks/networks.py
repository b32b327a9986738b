"""The networks for training.py, sensing.py, hot_spots.py and ownership.py, which train on random images; their gate.

gate    loss and gradients of the compact network, and its loss after one step, must equal those of the same network
        in the masked layout, which uses torch's dense products
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
import report
from gate import Mismatch, error
from gossamer.cli.models import MLP, VGG16, Model, ResNet18, ResNet20

CLASSES = 10
# Allowed errors in float32. If rounding switches a ReLU, gradients differ by more than rounding errors.
LOSS, LOSS_AFTER, GRADIENT = 1e-4, 1e-3, 5e-2
NETWORKS: dict[str, tuple[Model, tuple[int, ...]]] = {  # name -> network, shape of its input
    "vgg16-bn": (VGG16(), (3, 32, 32)),
    "resnet18": (ResNet18(), (3, 32, 32)),
    "mlp": (MLP((1024, 1024)), (784,)),
}
TINY: dict[str, tuple[Model, tuple[int, ...]]] = {"resnet20": (ResNet20(), (3, 8, 8)), "mlp": (MLP((16, 16)), (20,))}


class Trainee:
    """A network, its optimizer, a batch: ``step`` is one training step."""

    def __init__(self, net: nn.Module, batch: tuple[Tensor, Tensor], fused: bool = False):
        self.net, (self.x, self.y) = net.train(), batch
        self.optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=fused or None)

    def loss(self) -> Tensor:
        """Cross-entropy of the batch."""
        return F.cross_entropy(self.net(self.x), self.y)

    def step(self) -> float:
        """Forward, backward, optimizer. Returns the loss."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


# -------------------------------------------------------------------- arguments


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of a benchmark over networks."""
    p = report.parser(description)
    p.add_argument("--models", nargs="+", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    p.add_argument("--budget-rule", default="erk", choices=sorted(gs.BUDGETS), help="how layers divide the density")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--fused", action="store_true", help="torch's fused SGD, for all variants")
    return p


def parsed(p: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the defaults that depend on other arguments."""
    args = p.parse_args(argv)
    args.budget = (0.0 if args.quick else 10.0) if args.budget is None else args.budget
    args.batch = 8 if args.quick else args.batch
    args.networks = TINY if args.quick else NETWORKS
    args.models = args.models or list(args.networks)
    unknown = [name for name in args.models if name not in args.networks]
    if unknown:
        p.error(f"unknown network {unknown[0]!r}: one of {', '.join(args.networks)}")
    return args


# -------------------------------------------------------------------- networks


def batch_of(name: str, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    rng = torch.Generator().manual_seed(args.seed)
    x = torch.randn(args.batch, *args.networks[name][1], generator=rng)
    return x, torch.randint(CLASSES, (args.batch,), generator=rng)


def dense_network(name: str, args: argparse.Namespace) -> nn.Module:
    """The dense network, the same for the same seed."""
    model, shape = args.networks[name]
    return model.build(shape, CLASSES, torch.Generator().manual_seed(args.seed))


def sparse_network(name: str, density: float, args: argparse.Namespace, layout: str = "csr") -> nn.Module:
    """The sparse network, with the same supports and values in every layout."""
    rng = torch.Generator().manual_seed(args.seed + 1)
    return gs.sparsify(dense_network(name, args), density, budget=args.budget_rule, layout=layout, fuse=True, rng=rng)


def kernels_of(net: nn.Module) -> list[str]:
    """Names of the kernels of its sparse layers."""
    return sorted({name for layer in gs.sparse_layers(net).values() for name in layer.kernels.values()})


# -------------------------------------------------------------------- the gate


def gate(name: str, density: float, args: argparse.Namespace) -> None:
    """One step of the compact network against one step of the same network in the masked layout. Raises Mismatch."""
    batch = batch_of(name, args)
    ours, masked = (Trainee(sparse_network(name, density, args, kind), batch, args.fused) for kind in ("csr", "masked"))
    errors = {"loss": abs(ratio(ours, masked, backward=True) - 1) / LOSS}
    others = gs.sparse_layers(masked.net)
    for layer_name, layer in gs.sparse_layers(ours.net).items():
        s, other = layer.support, others[layer_name]
        assert layer.values.grad is not None and other.values.grad is not None and s.same(other.support)
        expected = other.layout.compact(other.values.grad, s)
        errors[f"gradient of {layer_name}"] = error(layer.values.grad, expected) / GRADIENT
    for t in (ours, masked):
        t.optimizer.step()
    errors["loss after a step"] = abs(ratio(ours, masked) - 1) / LOSS_AFTER
    worst = max(errors, key=lambda key: (math.isnan(errors[key]), errors[key]))
    if not errors[worst] <= 1:  # NaN compares as False
        what = f"{worst} differs from that in the masked layout by {errors[worst]:.1e} times what is allowed"
        raise Mismatch(f"{name}, density {density:g}: {what}")


def ratio(a: Trainee, b: Trainee, backward: bool = False) -> float:
    """Quotient of the losses. ``backward``: also computes their gradients."""
    losses = [t.loss() for t in (a, b)]
    for loss in losses if backward else ():
        loss.backward()
    return float(losses[0].detach() / losses[1].detach())
