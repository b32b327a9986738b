"""Laws of surgery."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..layers import SparseLinear
from ..layouts import Layout, scatter
from ..support import Support
from ..surgery import set_support_
from .details import Optimizers, demand, nesterov, same
from .supports import check_support


def check_surgery(
    set_support: Callable[..., None] = set_support_,
    *,
    layout: str | Layout = "csr",
    block: tuple[int, int] = (1, 1),
    optimizer: Optimizers = nesterov,
) -> None:
    """A layer that gets another support keeps value and optimizer state of the blocks in both; what is born has value 0 and state 0.

    Also: the parameter stays the same object, and where n stays the same all its storage stays in place; the bias is not touched.
    """
    where = f"surgery on layout {layout if isinstance(layout, str) else layout.name!r} in blocks of {block}"
    rng = torch.Generator().manual_seed(0)
    for change in ("same", "fewer", "more", "same"):
        s = Support.random((7, 11), 9, block, rng) if block == (1, 1) else Support.random((7, 11), 4, block, rng)
        layer, ids = SparseLinear(11, 7, support=s, layout=layout, rng=rng, dtype=torch.float64), s.ids()
        opt = optimizer(layer.parameters())
        for _ in range(3):
            layer(torch.randn(5, 11, generator=rng, dtype=torch.float64)).square().sum().backward()
            opt.step()
        n = {"same": s.n, "fewer": s.n // 2, "more": s.n + 2}[change]
        keep = s.ids()[: max(1, n // 2)]
        rest = Support.from_ids(keep, s.shape, s.block)
        new = Support.from_ids(torch.cat([keep, rest.sample_outside(n - keep.numel(), rng)]), s.shape, s.block)
        parameter, bias = layer.values, copy.deepcopy(layer.bias)
        before = {key: _dense(t, layer.layout, s) for key, t in _state(layer, opt).items()}
        places = _places(layer, opt)
        set_support(layer, new, opt)

        demand(layer.support.same(new), f"{where}, {change} n: the layer must hold the new support")
        check_support(layer.support, draws=0)
        demand(torch.equal(s.ids(), ids), f"{where}, {change} n: a Support that somebody holds must not change")
        leaf = layer.values is parameter and parameter.is_leaf and parameter.requires_grad
        demand(leaf, f"{where}: the parameter must stay the same leaf")
        demand(layer.values.grad is None, f"{where}: the gradient of the old support must go")
        demand(same(bias, layer.bias), f"{where}: the bias must not change")
        after = _state(layer, opt)
        demand(after.keys() == before.keys(), f"{where}, {change} n: the optimizer's state must keep its entries")
        both = s.mask() & new.mask()
        for key, t in after.items():
            demand(t.shape == layer.values.shape, f"{where}, {change} n: {key} must have the parameter's shape")
            now = _dense(t, layer.layout, new)
            demand(bool((now[~both] == 0).all()), f"{where}, {change} n: {key} of a born block must be 0")
            demand(
                torch.equal(now[both], before[key][both]),
                f"{where}, {change} n: {key} of a block that stays must be carried",
            )
            if layer.layout.storage == "dense":
                demand(
                    bool((t.view(s.shape)[~new.mask()] == 0).all()),
                    f"{where}, {change} n: {key} must be 0 off the support",
                )
        if change == "same":
            demand(_places(layer, opt) == places, f"{where}: where n stays the same, all storage must stay in place")
        layer(torch.randn(5, 11, generator=rng, dtype=torch.float64)).square().sum().backward()
        opt.step()
        demand(bool(layer.values.isfinite().all()), f"{where}, {change} n: training must go on")


def _state(layer: SparseLinear, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    entries = {key: t for key, t in opt.state[layer.values].items() if torch.is_tensor(t) and t.dim() > 0}
    return {"values": layer.values.detach(), **entries}


def _dense(t: Tensor, layout: Layout, s: Support) -> Tensor:
    return scatter(layout.compact(t, s), s).clone()


def _places(layer: SparseLinear, opt: torch.optim.Optimizer) -> dict[str, int]:
    return {key: t.data_ptr() for key, t in _state(layer, opt).items()}
