# pyright: reportUnknownMemberType=false
"""What the backward passes of a layer report, to whom, and when it counts.

A layer has one slot for observations. ``layer.observe(tell)`` makes an :class:`Observation`; while it is open,
``tell(dy, x)`` is called in every backward pass, with the gradient of the output and the input.

A gradient that is measured off the support belongs to the one in ``values.grad``: it counts exactly the passes that
accumulated there since that was last None or zero. An :class:`Observer` therefore looks at every pass twice:

    at the layer's output         (dy, x): something is measured, and waits, under the number of the pass
    after ``values.grad += g``    what waits under this number is added up; what waits under any other is forgotten

``torch.autograd.grad`` never comes to the second. The loss of another network, or a step that was skipped, may leave
something behind: it is forgotten when the gradient is seen to have been None or zero since. Operands that are kept
until the step are checked as autograd checks the tensors that it saves.
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
    """What the weight gradient of one pass is made of, and the versions of both tensors at that time."""

    dy: Tensor
    x: Tensor
    versions: tuple[int, int]

    def checked(self, who: str) -> tuple[Tensor, Tensor]:
        """(dy, x), if nobody has written to them. Raises UsageError."""
        _check_version(who, self.x, self.versions[1])
        if version_of(self.dy) != self.versions[0]:
            what = "the gradient of its output was changed in place before the step that needs it"
            raise UsageError(who, what, remedy="clone it first")
        return self.dy, self.x


@dataclass
class Seen:
    """What passes have shown, added up."""

    sampled: Tensor | None = None  # gradient at the sensed coordinates
    active: Tensor | None = None  # gradient of the stored values, before anybody clips it
    flow: tuple[Tensor, Tensor] | None = None  # sums of squares of dy and x per block row and block column
    operands: list[Operands] = field(default_factory=list[Operands])

    def plus(self, more: "Seen") -> "Seen":
        """Both together; neither is changed."""
        pairs = ((self.sampled, more.sampled), (self.active, more.active))
        sampled, active = (a if b is None else b if a is None else a + b for a, b in pairs)
        flow = self.flow or more.flow
        if self.flow is not None and more.flow is not None:
            flow = (self.flow[0] + more.flow[0], self.flow[1] + more.flow[1])
        return Seen(sampled, active, flow, [*self.operands, *more.operands])

    @property
    def tensors(self) -> list[Tensor]:
        """All that is held."""
        held = [t for t in (self.sampled, self.active, *(self.flow or ())) if t is not None]
        return held + [t for pair in self.operands for t in pair[:2]]


class Observable(Protocol):
    """What an observer needs of a layer."""

    values: nn.Parameter

    def observe(
        self, tell: Callable[[Tensor, Tensor], object], look: Callable[[], object] | None = None, who: str | None = None
    ) -> "Observation":
        """Makes an observation of the layer's backward passes."""
        ...


class Observation:
    """A place in a layer's slot: a context, or :meth:`open` and :meth:`close`. Made by ``layer.observe``.

    Args:
        slot: the layer's open observations; only observations write to it.
        who: named in errors.
        tell: called with (dy, x) of each backward pass while this is open.
        look: called in each forward pass before the product: the place to notice that the layer has another support.

    Raises (in the backward pass): UsageError where the input was changed in place since the forward pass.
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
        """Whether passes are told."""
        return self in self._slot

    def open(self) -> "Observation":
        """From the next forward pass on, its passes are told."""
        if not self.is_open:
            self._slot.append(self)
        return self

    def close(self) -> None:
        """Nothing is told any more, not even of forward passes made before."""
        if self.is_open:
            self._slot.remove(self)

    def __enter__(self) -> "Observation":
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self, x: Tensor, version: int, dy: Tensor) -> None:
        """Hook of the output: its gradient ``dy`` is known. ``version``: that of ``x`` in the forward pass."""
        if self.is_open and not is_batch_of_gradients(dy):  # is_grads_batched: it cannot be read, nor accumulates
            _check_version(self.who, x, version)
            self.tell(dy.detach(), x)


class Observer:
    """Adds up what the backward passes of one layer show, for the gradient that ``values.grad`` holds.

    Args:
        layer: the sparse layer.
        who: named in errors: the layer's name.
        measure: (dy, x) -> what a pass shows, or None; called between :meth:`start` and :meth:`stop`.
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
        self.on_support = False  # the gradient of the stored values is wanted too
        self._observation = layer.observe(self._tell, look, who)
        self._waiting: list[tuple[int, Seen]] = []  # by the number of their pass
        self._seen: list[tuple[weakref.ref[Tensor], Seen]] = []  # by the gradient that holds it, the last at the end
        self._base: Seen | None = None  # what the pass in progress adds to
        self._handles: list[RemovableHandle] = []

    def start(self, on_support: bool = False) -> None:
        """Measures the passes from the next forward pass on, and forgets what was seen before."""
        self.stop()
        values = self.layer.values
        if not values.requires_grad:
            return  # a frozen layer has no passes
        self.on_support = on_support
        self._handles = [values.register_hook(self._before), values.register_post_accumulate_grad_hook(self._after)]
        self._observation.open()

    def stop(self) -> None:
        """Nothing is measured any more."""
        self.forget()
        self._observation.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forget(self) -> None:
        """Forgets what was seen."""
        self._waiting, self._seen, self._base = [], [], None

    def has_gradient(self) -> bool:
        """Whether ``values.grad`` holds something: reads a number."""
        grad = self.layer.values.grad
        return grad is not None and bool(grad.any())

    def seen(self) -> Seen | None:
        """What the passes that are in ``values.grad`` now have shown; None if there are none.

        If the gradient is another tensor than the one in which passes have accumulated, it was scaled or clipped: it
        stands for the last one.
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
        """What the passes have shown that accumulated in this very tensor."""
        return next((seen for reference, seen in self._seen if reference() is grad), None) if grad is not None else None

    # ---------------------------------------------------------------- the hooks

    def _tell(self, dy: Tensor, x: Tensor) -> None:
        """The gradient of an output is known."""
        if is_wrapped(dy):
            return  # the gradient of a transform never accumulates
        with torch.no_grad():
            seen = self.measure(dy, x)
        if seen is not None:
            self._waiting.append((_pass_number(), seen))

    def _before(self, grad: Tensor) -> None:
        """A gradient is about to be added to ``values.grad``: where that is None or zero, earlier passes are gone."""
        held, self._base = self.layer.values.grad, None
        if self._seen and self.has_gradient():
            self._base = self._of(held) or self._seen[-1][1]  # another tensor: scaled or clipped
        self._seen = [(ref, seen) for ref, seen in self._seen if ref() is not None and ref() is not held]
        if self.on_support:
            self._waiting.append((_pass_number(), Seen(active=grad.detach().clone())))

    def _after(self, values: Tensor) -> None:
        """The gradient has been added."""
        waiting, self._waiting = self._waiting, []
        number, grad, total = _pass_number(), values.grad, self._base
        for at, seen in waiting:
            if at == number:
                total = seen if total is None else total.plus(seen)
        if total is not None and grad is not None:
            self._seen.append((weakref.ref(grad), total))


class Observed(nn.Module):
    """A module with one slot for observations of its backward passes. Its forward pass goes through :func:`watched`."""

    def __init__(self) -> None:
        super().__init__()
        self._observations: list[Observation] = []

    def observe(
        self, tell: Callable[[Tensor, Tensor], object], look: Callable[[], object] | None = None, who: str | None = None
    ) -> Observation:
        """An observation of the backward passes, closed at first: ``with layer.observe(tell): ...``.

        Args:
            tell: called in every backward pass with the gradient of the output and the input, both detached.
            look: called in every forward pass before the product.
            who: named in errors; the layer's class where None.
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
    """``multiply(x)``, with hooks that report to the open observations in each pass that makes the output's gradient.

    A pass through the input's gradient (a gradient penalty) adds dy^T ggx to the weight's gradient, where ggx is the
    gradient of that gradient: it is reported as a pass with ggx for x.
    """
    if not slot or not torch.is_grad_enabled():
        return multiply(x)
    for observation in tuple(slot):
        if observation.look is not None:
            observation.look()  # it may open or close observations
    observations = tuple(slot)
    passes: list[Tensor] = []  # dy of the passes that may be differentiated again
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
    """The gradient of the input is known. If it may be differentiated, its own gradient ggx is an input too."""
    if dx.requires_grad and passes:
        for observation in observations:
            dx.register_hook(partial(_report_again, observation, passes[-1]))


def _report_again(observation: Observation, dy: Tensor, ggx: Tensor) -> None:
    observation.report(ggx.detach(), version_of(ggx), dy)


def version_of(t: Tensor) -> int:
    """How often a tensor has been written to; -1 where torch does not count."""
    return -1 if t.is_inference() else t._version


def operands(dy: Tensor, x: Tensor, dtype: torch.dtype) -> Operands:
    """The operands of a pass, in the dtype of the values."""
    dy, x = dy.to(dtype), x.to(dtype)
    return Operands(dy, x, (version_of(dy), version_of(x)))


def _check_version(who: str, x: Tensor, version: int) -> None:
    if version_of(x) != version:
        what = "its input was changed in place before its gradient off the support was measured"
        raise UsageError(who, what, remedy="clone the input, or fill the buffer again only after step()")


def _pass_number() -> int:
    """The number of the backward pass that runs in this thread."""
    return backward_pass()
