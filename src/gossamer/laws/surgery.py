"""The law of surgery, which gives a layer another support."""

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
    """Surgery keeps the value and the optimizer state of all blocks that are in the old and in the new support.

    Value and state of a newborn block are 0. The parameter stays the same object. If the number of blocks does not
    change, all storage stays in place. The bias and the old Support object do not change.

    Args:
        set_support: ``gossamer.set_support_``, or a function with its signature.
        layout: layout of the layer.
        block: block of the layer.
        optimizer: makes an optimizer of parameters.

    Raises: AssertionError.
    """
    where = f"surgery on layout {layout if isinstance(layout, str) else layout.name!r} in blocks of {block}"
    rng = torch.Generator().manual_seed(0)
    for change in ("same", "fewer", "more", "same"):
        s = Support.random((7, 11), 9, block, rng) if block == (1, 1) else Support.random((7, 11), 4, block, rng)
        layer = SparseLinear(11, 7, support=s, layout=layout, rng=rng, dtype=torch.float64)
        opt = optimizer(layer.parameters())
        for _ in range(3):
            _train(layer, opt, rng)
        n = {"same": s.n, "fewer": s.n // 2, "more": s.n + 2}[change]
        keep = s.ids()[: max(1, n // 2)]
        rest = Support.from_ids(keep, s.shape, s.block)
        new = Support.from_ids(torch.cat([keep, rest.sample_outside(n - keep.numel(), rng)]), s.shape, s.block)
        _check_change(set_support, layer, new, opt, f"{where}, {change} n")
        _train(layer, opt, rng)
        demand(bool(layer.values.isfinite().all()), f"{where}, {change} n: training must continue")


def _train(layer: SparseLinear, opt: torch.optim.Optimizer, rng: torch.Generator) -> None:
    layer(torch.randn(5, 11, generator=rng, dtype=torch.float64)).square().sum().backward()
    opt.step()


def _check_change(
    set_support: Callable[..., None], layer: SparseLinear, new: Support, opt: torch.optim.Optimizer, where: str
) -> None:
    """One change of support."""
    s, parameter, bias = layer.support, layer.values, copy.deepcopy(layer.bias)
    ids, places = s.ids(), _places(layer, opt)
    before = {key: _dense(t, layer.layout, s) for key, t in _state(layer, opt).items()}
    set_support(layer, new, opt)

    demand(layer.support.same(new), f"{where}: the layer must hold the new support")
    check_support(layer.support, draws=0)
    demand(torch.equal(s.ids(), ids), f"{where}: the old Support object must not change")
    leaf = layer.values is parameter and parameter.is_leaf and parameter.requires_grad
    demand(leaf, f"{where}: the parameter must stay the same leaf")
    demand(layer.values.grad is None, f"{where}: the gradient of the old support must be removed")
    demand(same(bias, layer.bias), f"{where}: the bias must not change")
    after = _state(layer, opt)
    demand(after.keys() == before.keys(), f"{where}: the optimizer's state must keep its entries")
    both = s.mask() & new.mask()
    for key, t in after.items():
        demand(t.shape == layer.values.shape, f"{where}: {key} must have the parameter's shape")
        now = _dense(t, layer.layout, new)
        demand(bool((now[~both] == 0).all()), f"{where}: {key} of a born block must be 0")
        carried = torch.equal(now[both], before[key][both])
        demand(carried, f"{where}: {key} of a block that stays must be carried")
        if layer.layout.storage == "dense":
            off = t.view(s.shape)[~new.mask()]
            demand(bool((off == 0).all()), f"{where}: {key} must be 0 off the support")
    if new.n == s.n:
        demand(_places(layer, opt) == places, f"{where}: if n does not change, all storage must stay in place")


def _state(layer: SparseLinear, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    entries = {key: t for key, t in opt.state[layer.values].items() if torch.is_tensor(t) and t.dim() > 0}
    return {"values": layer.values.detach(), **entries}


def _dense(t: Tensor, layout: Layout, s: Support) -> Tensor:
    return scatter(layout.compact(t, s), s).clone()


def _places(layer: SparseLinear, opt: torch.optim.Optimizer) -> dict[str, int]:
    return {key: t.data_ptr() for key, t in _state(layer, opt).items()}
