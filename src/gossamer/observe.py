# pyright: reportUnknownMemberType=false
"""Observes the backward passes of a layer, and decides which passes count.

A layer has one slot for observations. ``layer.observe(tell)`` makes an :class:`Observation`. While it is open, every
backward pass calls ``tell(dy, x)`` with the gradient of the output and the input.

What is measured off the support must match ``values.grad``. So exactly those passes count that have accumulated into
``values.grad`` since it was last None or zero. An :class:`Observer` therefore handles every pass twice:

    at the layer's output         (dy, x) are measured; the result waits, under the number of the pass
    after ``values.grad += g``    results that wait under this number are added up; all others are forgotten

A pass of ``torch.autograd.grad`` never reaches the second point. The loss of another network, or a skipped step, may
leave results behind. They are forgotten once the gradient has been None or zero. Operands that are kept until the step
are checked for writes, as autograd checks the tensors that it saves.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._backend.private_torch import backward_pass, is_batch_of_gradients, is_wrapped
from ._errors import UsageError


class Operands(NamedTuple):
    """The operands of the weight gradient of one pass, and the versions of both tensors at that time."""

    dy: Tensor
    x: Tensor
    versions: tuple[int, int]

    def checked(self, who: str) -> tuple[Tensor, Tensor]:
        """(dy, x). Raises UsageError if one of them was written to."""
        _check_version(who, self.x, self.versions[1])
        if version_of(self.dy) != self.versions[0]:
            what = "the gradient of its output was changed in place before the step that needs it"
            raise UsageError(who, what, remedy="clone it first")
        return self.dy, self.x


@dataclass
class Seen:
    """The sums of what backward passes have measured."""

    sampled: Tensor | None = None  # gradient at the sensed coordinates
    active: Tensor | None = None  # gradient of the stored values, before any clipping
    flow: tuple[Tensor, Tensor] | None = None  # sums of squares of dy and x per block row and block column
    operands: list[Operands] = field(default_factory=list[Operands])

    def plus(self, more: "Seen") -> "Seen":
        """The sum of both. Neither is changed."""
        pairs = ((self.sampled, more.sampled), (self.active, more.active))
        sampled, active = (a if b is None else b if a is None else a + b for a, b in pairs)
        flow = self.flow or more.flow
        if self.flow is not None and more.flow is not None:
            flow = (self.flow[0] + more.flow[0], self.flow[1] + more.flow[1])
        return Seen(sampled, active, flow, [*self.operands, *more.operands])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors held."""
        held = [t for t in (self.sampled, self.active, *(self.flow or ())) if t is not None]
        return held + [t for pair in self.operands for t in pair[:2]]


class Observable(Protocol):
    """What an observer needs from a layer."""

    values: nn.Parameter

    def observe(
        self, tell: Callable[[Tensor, Tensor], object], look: Callable[[], object] | None = None, who: str | None = None
    ) -> "Observation":
        """Makes an observation of the layer's backward passes."""
        ...


class Observation:
    """An observation of a layer's backward passes. Use it as a context, or call :meth:`open` and :meth:`close`.

    ``layer.observe`` makes it. In the backward pass it raises UsageError if the input was changed in place since the
    forward pass.

    Args:
        slot: the layer's open observations; only observations write to it.
        who: the name in error messages.
        tell: called with (dy, x) of each backward pass while the observation is open.
        look: called in each forward pass before the product; it can detect that the layer has another support.
    """

    def __init__(
        self,
        slot: "list[Observation]",
        who: str,
        tell: Callable[[Tensor, Tensor], object],
        look: Callable[[], object] | None = None,
    ):
        self._slot, self.who, self.tell, self.look = slot, who, tell, look

    @property
    def is_open(self) -> bool:
        """Whether passes are reported."""
        return self in self._slot

    def open(self) -> "Observation":
        """Reports passes, from the next forward pass on."""
        if not self.is_open:
            self._slot.append(self)
        return self

    def close(self) -> None:
        """Stops reporting at once: passes whose forward part is done are not reported either."""
        if self.is_open:
            self._slot.remove(self)

    def __enter__(self) -> "Observation":
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self, x: Tensor, version: int, dy: Tensor) -> None:
        """Hook of the output, called with its gradient ``dy``. ``version``: that of ``x`` in the forward pass."""
        if self.is_open and not is_batch_of_gradients(dy):  # is_grads_batched: dy cannot be read, and never accumulates
            _check_version(self.who, x, version)
            self.tell(dy.detach(), x)


class Observer:
    """Adds up the measurements of those backward passes of one layer that are in ``values.grad``.

    Args:
        layer: the sparse layer.
        who: the layer's name, for error messages.
        measure: (dy, x) -> the measurement of one pass, or None; called between :meth:`start` and :meth:`stop`.
        look: as in :class:`Observation`.
    """

    def __init__(
        self,
        layer: Observable,
        who: str,
        measure: Callable[[Tensor, Tensor], Seen | None],
        look: Callable[[], object] | None = None,
    ):
        self.layer, self.who, self.measure = layer, who, measure
        self.on_support = False  # whether the gradient of the stored values is recorded too
        self._observation = layer.observe(self._tell, look, who)
        self._waiting: list[tuple[int, Seen]] = []  # by the number of their pass
        self._seen: list[tuple[weakref.ref[Tensor], Seen]] = []  # by the gradient tensor they belong to, latest last
        self._base: Seen | None = None  # the sum to which the pass in progress is added
        self._handles: list[RemovableHandle] = []

    def start(self, on_support: bool = False) -> None:
        """Measures passes, from the next forward pass on. Forgets earlier measurements."""
        self.stop()
        values = self.layer.values
        if not values.requires_grad:
            return  # a frozen layer has no passes
        self.on_support = on_support
        self._handles = [values.register_hook(self._before), values.register_post_accumulate_grad_hook(self._after)]
        self._observation.open()

    def stop(self) -> None:
        """Stops measuring."""
        self.forget()
        self._observation.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forget(self) -> None:
        """Forgets all measurements."""
        self._waiting, self._seen, self._base = [], [], None

    def has_gradient(self) -> bool:
        """Whether ``values.grad`` has a non-zero entry. This reads a number from the device."""
        grad = self.layer.values.grad
        return grad is not None and bool(grad.any())

    def seen(self) -> Seen | None:
        """The sum of the measurements of the passes that are in ``values.grad`` now; None if there are none.

        If ``values.grad`` is a tensor into which no pass has accumulated, the gradient was scaled or clipped. Then the
        sum of the last known gradient is taken.
        """
        self._waiting = []
        if not self.has_gradient():
            self._seen = []
        return self._of(self.layer.values.grad) or (self._seen[-1][1] if self._seen else None)

    @property
    def bytes(self) -> int:
        """Bytes held."""
        held = [t for _, seen in self._seen for t in seen.tensors]
        return sum(t.numel() * t.element_size() for t in held)

    def _of(self, grad: Tensor | None) -> Seen | None:
        """The sum of the passes that accumulated into this tensor object."""
        return next((seen for reference, seen in self._seen if reference() is grad), None) if grad is not None else None

    # ---------------------------------------------------------------- the hooks

    def _tell(self, dy: Tensor, x: Tensor) -> None:
        """Measures a pass whose output gradient is known."""
        if is_wrapped(dy):
            return  # the gradient of a torch.func transform never accumulates
        with torch.no_grad():
            seen = self.measure(dy, x)
        if seen is not None:
            self._waiting.append((_pass_number(), seen))

    def _before(self, grad: Tensor) -> None:
        """Runs before a gradient is added to ``values.grad``. If that is None or zero, earlier passes do not count."""
        held, self._base = self.layer.values.grad, None
        if self._seen and self.has_gradient():
            self._base = self._of(held) or self._seen[-1][1]  # another tensor: scaled or clipped
        self._seen = [(ref, seen) for ref, seen in self._seen if ref() is not None and ref() is not held]
        if self.on_support:
            self._waiting.append((_pass_number(), Seen(active=grad.detach().clone())))

    def _after(self, values: Tensor) -> None:
        """Runs after the gradient has been added."""
        waiting, self._waiting = self._waiting, []
        number, grad, total = _pass_number(), values.grad, self._base
        for at, seen in waiting:
            if at == number:
                total = seen if total is None else total.plus(seen)
        if total is not None and grad is not None:
            self._seen.append((weakref.ref(grad), total))


class Observed(nn.Module):
    """A module with one slot for observations of its backward passes. Its forward pass calls :func:`watched`."""

    def __init__(self) -> None:
        super().__init__()
        self._observations: list[Observation] = []

    def observe(
        self, tell: Callable[[Tensor, Tensor], object], look: Callable[[], object] | None = None, who: str | None = None
    ) -> Observation:
        """Makes an observation of the backward passes. It is closed at first: ``with layer.observe(tell): ...``.

        Args:
            tell: called in every backward pass with the gradient of the output and the input, both detached.
            look: called in every forward pass before the product.
            who: the name in error messages; the class of the layer if None.
        """
        return Observation(self._observations, who or type(self).__name__, tell, look)

    @property
    def observers(self) -> tuple[Observation, ...]:
        """The open observations."""
        return tuple(self._observations)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a file, has no observation."""
        return {**vars(self), "_observations": []}


# -------------------------------------------------------------------- the forward pass


def watched(slot: list[Observation], x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """``multiply(x)``, with hooks that report every backward pass through the output to the open observations.

    A backward pass through the input's gradient (a gradient penalty) adds dy^T ggx to the weight's gradient, where ggx
    is the gradient with respect to the input's gradient. It is reported as a pass with ggx in place of x.
    """
    if not slot or not torch.is_grad_enabled():
        return multiply(x)
    for observation in tuple(slot):
        if observation.look is not None:
            observation.look()  # this may open or close observations
    observations = tuple(slot)
    passes: list[Tensor] = []  # dy of each pass that may be differentiated again
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(partial(_watch_input_gradient, observations, passes))
    y = multiply(x)
    if y.requires_grad:
        for observation in observations:
            y.register_hook(partial(observation.report, x.detach(), version_of(x)))
        if x.requires_grad:
            y.register_hook(partial(_note_differentiable, passes))
    return y


def _note_differentiable(passes: list[Tensor], dy: Tensor) -> None:
    if dy.requires_grad or torch.is_grad_enabled():  # create_graph: this pass may be differentiated
        passes.append(dy.detach())


def _watch_input_gradient(observations: tuple[Observation, ...], passes: list[Tensor], dx: Tensor) -> None:
    """Hook of the input, called with its gradient. If that may be differentiated, its gradient ggx is reported too."""
    if dx.requires_grad and passes:
        for observation in observations:
            dx.register_hook(partial(_report_again, observation, passes[-1]))


def _report_again(observation: Observation, dy: Tensor, ggx: Tensor) -> None:
    observation.report(ggx.detach(), version_of(ggx), dy)


def version_of(t: Tensor) -> int:
    """The number of writes to a tensor; -1 if torch does not count them."""
    return -1 if t.is_inference() else t._version


def operands(dy: Tensor, x: Tensor, dtype: torch.dtype) -> Operands:
    """The operands of a pass, in the dtype of the values."""
    dy, x = dy.to(dtype), x.to(dtype)
    return Operands(dy, x, (version_of(dy), version_of(x)))


def _check_version(who: str, x: Tensor, version: int) -> None:
    if version_of(x) != version:
        what = "its input was changed in place before the gradient off the support was measured"
        raise UsageError(who, what, remedy="clone the input, or write to its buffer only after step()")


def _pass_number() -> int:
    """The number of the backward pass that is running in this thread."""
    return backward_pass()
