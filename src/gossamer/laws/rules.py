"""Laws of rules."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..penalties import Penalty
from ..rules import Rule, SparseOptimizer
from .details import close, demand, same


def check_rule(rule: Rule, *, lr: float = 0.05, shell: Callable[..., Any] = SparseOptimizer, steps: int = 12) -> None:
    """One rule in the one optimizer: gradients and places in memory stay, a step of size 0 changes nothing, tensors do not see each other,
    nothing is read by the host, what is all zero stays finite, strength 0 is no penalty, and a resumed run goes on bit for bit.

    Args:
        lr: step size of the tiny run.
        shell: what takes (parameters, rule, lr): ``SparseOptimizer``, or anything with its signature and methods.
    """
    where = repr(rule)
    both = [shape for shape in ((5, 7), (3, 4, 3, 2)) if not rule.penalty.problems(shape)]
    demand(bool(both), f"{where}: its penalty fits neither a matrix nor a kernel")
    shapes = [*both, *both, (5,)]

    params = _tensors(shapes)
    optimizer, grads = shell(params, rule, lr), [_gradients(shapes, t) for t in range(1, steps + 1)]
    places, snapshot = [p.data_ptr() for p in params], None
    for t, given in enumerate(grads, 1):
        _give(params, given)
        optimizer.step()
        demand(
            all(same(p.grad, g) for p, g in zip(params, given, strict=True)),
            f"{where}: a step must not change a gradient",
        )
        if t == steps // 2:
            snapshot = copy.deepcopy(([p.detach() for p in params], optimizer.state_dict()))
    demand([p.data_ptr() for p in params] == places, f"{where}: parameters must stay where they are in memory")
    demand(all(bool(p.isfinite().all()) for p in params), f"{where}: weights must stay finite")

    assert snapshot is not None
    again = _tensors(shapes, snapshot[0])
    resumed = shell(again, rule, lr)
    resumed.load_state_dict(snapshot[1])
    _drive(resumed, again, grads[steps // 2 :])
    demand(
        same([p.detach() for p in again], [p.detach() for p in params]),
        f"{where}: a resumed run must go on bit for bit",
    )

    for i, shape in enumerate(both):
        alone = _tensors([shape], [_tensors(shapes)[i].detach()])
        _drive(shell(alone, rule, lr), alone, [given[i : i + 1] for given in grads])
        demand(torch.equal(alone[0], params[i]), f"{where}: a tensor must move as if it were alone")

    still = _tensors(both, [rule.penalty.prox(p.detach(), 1.0) for p in _tensors(both)])
    before = [p.detach().clone() for p in still]
    _drive(shell(still, rule, 0.0), still, [_gradients(both, 1)])
    for a, b in zip(still, before, strict=True):
        close(a, b, f"{where}: a step of size 0 must change nothing", 1e-12)

    if not _constrains(rule.penalty, both[0]):
        free, plain = _tensors(both), _tensors(both)
        _drive(shell([{"params": free, "strength": 0.0}], rule, lr), free, [given[: len(both)] for given in grads])
        beside = {"params": _tensors(both[:1])}  # an optimizer penalises something
        _drive(
            shell([{"params": plain, "penalised": False}, beside], rule, lr),
            plain,
            [given[: len(both)] for given in grads],
        )
        for a, b in zip(free, plain, strict=True):
            close(a, b, f"{where}: with strength 0 weights must move as those without a penalty", 1e-12)

    dead = _tensors(both, [torch.zeros(shape, dtype=torch.float64) for shape in both])
    _drive(shell(dead, rule, lr), dead, [_gradients(both, t) for t in (1, 2, 3)])
    demand(all(bool(p.isfinite().all()) for p in dead), f"{where}: tensors that are all zero must stay finite")

    ghosts = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    optimizer = shell(ghosts, rule, lr)
    for _ in range(2):
        for p in ghosts:
            p.grad = torch.empty_like(p)
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError) as error:
            raise AssertionError(
                f"{where}: a step must read no tensor's value (on tensors without data: {error})"
            ) from error


def _constrains(penalty: Penalty, shape: tuple[int, ...]) -> bool:
    """Whether the penalty of some weights is infinite: then strength 0 does not mean no penalty."""
    return not bool(penalty.value(-torch.ones(shape, dtype=torch.float64)).isfinite())


def _tensors(shapes: Sequence[tuple[int, ...]], values: Sequence[Tensor] | None = None) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(v.clone()) for v in (drawn if values is None else values)]


def _gradients(shapes: Sequence[tuple[int, ...]], t: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(t)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def _give(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def _drive(optimizer: Any, params: Sequence[Tensor], grads: Sequence[Sequence[Tensor]]) -> None:
    for given in grads:
        _give(params, given)
        optimizer.step()
