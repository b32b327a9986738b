"""The law of rules."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..penalties import Penalty
from ..rules import Rule, SparseOptimizer
from .details import close, demand, same

Shape = tuple[int, ...]
Shell = Callable[..., Any]  # (parameters or groups, rule, lr) -> optimizer
Make = Callable[..., Any]  # (parameters or groups) -> optimizer


def check_rule(rule: Rule, *, lr: float = 0.05, shell: Shell = SparseOptimizer, steps: int = 12) -> None:
    """The properties of a rule inside the optimizer.

    A step changes no gradient, and allocates no new memory for parameters. A step of size 0 changes nothing. The result
    of a tensor does not depend on the other tensors. Strength 0 means no penalty. Tensors of zeros stay finite. The
    host reads no value of a tensor. A resumed run continues bit for bit.

    Args:
        rule: the rule.
        lr: step size of the tiny run.
        shell: makes an optimizer of (parameters, rule, lr): ``SparseOptimizer``, or a class with its signature and
            methods.
        steps: steps of the tiny run.

    Raises: AssertionError.
    """
    where = repr(rule)
    both = [shape for shape in ((5, 7), (3, 4, 3, 2)) if not rule.penalty.problems(shape)]
    demand(bool(both), f"{where}: its penalty fits neither a matrix nor a kernel")

    def make(params: object) -> Any:
        return shell(params, rule, lr)

    _check_run(make, both, steps, where)
    _check_step_of_size_zero(rule, shell, both, where)
    if not _constrains(rule.penalty, both[0]):
        _check_strength_zero(make, both, steps, where)
    dead = _tensors(both, [torch.zeros(shape, dtype=torch.float64) for shape in both])
    _drive(make(dead), dead, [_gradients(both, t) for t in (1, 2, 3)])
    demand(all(bool(p.isfinite().all()) for p in dead), f"{where}: tensors that are all zero must stay finite")
    _check_reads_nothing(make, [*both, (5,)], where)


def _check_run(make: Make, both: Sequence[Shape], steps: int, where: str) -> None:
    """Checks a run, the same run resumed after its first half, and the same run with each tensor alone."""
    shapes = [*both, *both, (5,)]
    params, grads = _tensors(shapes), [_gradients(shapes, t) for t in range(1, steps + 1)]
    optimizer, places = make(params), [p.data_ptr() for p in params]
    half = steps // 2
    _drive_and_compare(optimizer, params, grads[:half], where)
    values, state = copy.deepcopy(([p.detach() for p in params], optimizer.state_dict()))
    _drive_and_compare(optimizer, params, grads[half:], where)
    demand([p.data_ptr() for p in params] == places, f"{where}: parameters must stay where they are in memory")
    demand(all(bool(p.isfinite().all()) for p in params), f"{where}: weights must stay finite")

    again = _tensors(shapes, values)
    resumed = make(again)
    resumed.load_state_dict(state)
    _drive(resumed, again, grads[half:])
    equal = same([p.detach() for p in again], [p.detach() for p in params])
    demand(equal, f"{where}: a resumed run must go on bit for bit")
    for i, shape in enumerate(both):
        alone = _tensors([shape], [_tensors(shapes)[i].detach()])
        _drive(make(alone), alone, [given[i : i + 1] for given in grads])
        demand(torch.equal(alone[0], params[i]), f"{where}: a tensor must move as if it were alone")


def _check_step_of_size_zero(rule: Rule, shell: Shell, both: Sequence[Shape], where: str) -> None:
    still = _tensors(both, [rule.penalty.prox(p.detach(), 1.0) for p in _tensors(both)])
    before = [p.detach().clone() for p in still]
    _drive(shell(still, rule, 0.0), still, [_gradients(both, 1)])
    for a, b in zip(still, before, strict=True):
        close(a, b, f"{where}: a step of size 0 must change nothing", 1e-12)


def _check_strength_zero(make: Make, both: Sequence[Shape], steps: int, where: str) -> None:
    free, plain = _tensors(both), _tensors(both)
    grads = [_gradients(both, t) for t in range(1, steps + 1)]
    _drive(make([{"params": free, "strength": 0.0}]), free, grads)
    penalised = {"params": _tensors(both[:1])}  # the optimizer requires a penalised group
    _drive(make([{"params": plain, "penalised": False}, penalised]), plain, grads)
    for a, b in zip(free, plain, strict=True):
        close(a, b, f"{where}: with strength 0 weights must move as without a penalty", 1e-12)


def _check_reads_nothing(make: Make, shapes: Sequence[Shape], where: str) -> None:
    """Checks steps on tensors without data: reading a value would fail."""
    ghosts = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    optimizer = make(ghosts)
    for _ in range(2):
        for p in ghosts:
            p.grad = torch.empty_like(p)
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError) as error:
            what = f"{where}: a step must read no tensor's value (on tensors without data: {error})"
            raise AssertionError(what) from error


def _constrains(penalty: Penalty, shape: Shape) -> bool:
    """Whether the penalty of some weights is infinite. Strength 0 then still restricts the weights."""
    return not bool(penalty.value(-torch.ones(shape, dtype=torch.float64)).isfinite())


def _tensors(shapes: Sequence[Shape], values: Sequence[Tensor] | None = None) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(v.clone()) for v in (drawn if values is None else values)]


def _gradients(shapes: Sequence[Shape], t: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(t)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def _drive(optimizer: Any, params: Sequence[Tensor], grads: Iterable[Sequence[Tensor]]) -> None:
    """One step for each of the lists of gradients."""
    for given in grads:
        for p, g in zip(params, given, strict=True):
            p.grad = g.clone()
        optimizer.step()


def _drive_and_compare(optimizer: Any, params: Sequence[Tensor], grads: Iterable[Sequence[Tensor]], where: str) -> None:
    """As :func:`_drive`; checks that no step changes a gradient."""
    for given in grads:
        _drive(optimizer, params, [given])
        unchanged = all(same(p.grad, g) for p, g in zip(params, given, strict=True))
        demand(unchanged, f"{where}: a step must not change a gradient")
