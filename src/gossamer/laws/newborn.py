"""The law of newborn connections."""

from typing import Any

import torch
from torch import nn

from ..layers import SparseLinear
from ..layouts import Layout
from ..topology import SET
from .details import Optimizers, demand, nesterov
from .runs import Rewirers

GRADIENT, STEPS = 0.1, 5  # the gradient of every weight at every step; number of compared steps


def check_newborn(
    rewirer: Rewirers,
    optimizer: Optimizers = nesterov,
    *,
    newborn: str = "fresh",
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    age: int = 30,
) -> None:
    """The first five steps of a newborn connection equal those of a new parameter, within one per cent.

    Args:
        rewirer: ``gossamer.Rewirer``, or a class with its signature and methods.
        optimizer: makes an optimizer of parameters.
        newborn: the setting ``newborn`` of the rewirer.
        layout: layout of the sparse layers.
        block: block of the sparse layers.
        age: steps before the birth.

    Raises: AssertionError.
    """
    rng = torch.Generator().manual_seed(0)
    layer = SparseLinear(8, 8, density=0.3, layout=layout, block=block, bias=False, rng=rng)
    net = nn.Sequential(layer)
    opt, settings = optimizer(net.parameters()), SET(stop=1000 * age, every=age, drop_fraction=0.5)
    trainer: Any = rewirer(net, opt, settings, rng=torch.Generator().manual_seed(0), newborn=newborn)
    x = torch.full((1, 8), GRADIENT)

    def step() -> None:
        opt.zero_grad(set_to_none=True)
        net(x).sum().backward()
        trainer.step()

    for _ in range(age):
        step()
    born = (layer.to_dense() == 0) & layer.support.mask()
    demand(bool(born.any()), "the law needs a birth: an event that exchanges connections")
    fresh = nn.Parameter(torch.zeros(1, *(() if block == (1, 1) else block)))
    alone = optimizer([fresh])
    for t in range(1, STEPS + 1):
        before, start = layer.to_dense(), fresh.detach().clone()
        step()
        fresh.grad = torch.full_like(fresh, GRADIENT)
        alone.step()
        expected = float((fresh.detach() - start).flatten()[0])
        worst = float(((layer.to_dense() - before)[born] - expected).abs().max())
        what = f"newborn={newborn!r}: step {t} of a newborn must equal that of a new parameter"
        demand(worst <= 0.01 * abs(expected), what)
