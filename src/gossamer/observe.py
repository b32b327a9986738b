"""What the backward passes of a layer report, to whom, and when it counts.

A gradient that is measured off the support belongs to the one in ``values.grad``: it counts exactly the passes that accumulated there since
that was last None or zero. So a pass reports twice, and only both together count:

    at the layer's output         (dy, x): something is measured, and waits, under the number of the pass
    after ``values.grad += g``    what waits under this number is added up; what waits under any other is forgotten

``torch.autograd.grad`` never comes to the second; what another network's loss, or a step that was skipped, left behind goes when the
gradient is seen to have been None or zero since. Operands that are kept until the step are checked as autograd checks what it saves.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._backend.private_torch import backward_pass, is_batch_of_gradients, is_wrapped
from ._errors import UsageError


class Operands(NamedTuple):
    """What the weight gradient of one pass is made of, and in which versions it was seen."""

    dy: Tensor
    x: Tensor
    versions: tuple[int, int]

    def checked(self, who: str) -> tuple[Tensor, Tensor]:
        """(dy, x), if nobody has written to them. Raises UsageError."""
        _check_version(who, self.x, self.versions[1])
        if version_of(self.dy) != self.versions[0]:
            raise UsageError(
                who,
                "the gradient of its output was changed in place before the step that needs it",
                remedy="clone it first",
            )
        return self.dy, self.x


@dataclass
class Seen:
    """What passes have reported, added up."""

    sampled: Tensor | None = None  # gradient at the sensed coordinates
    active: Tensor | None = None  # gradient of the stored values, before anybody clips it
    flow: tuple[Tensor, Tensor] | None = None  # sums of squares of dy and x per block row and block column
    operands: list[Operands] = field(default_factory=list)

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


class Observer:
    """Watches the backward passes of one layer.

    Args:
        layer: the sparse layer.
        who: named in errors: the layer's name.
        measure: (dy, x) -> what is measured of a pass, or None; called while :meth:`start` is in force.
        look: called in the forward pass before it is watched, with the layer: the place to notice that its support is another.
    """

    def __init__(
        self,
        layer: Any,
        who: str,
        measure: Callable[[Tensor, Tensor], Seen | None],
        look: Callable[[Any], None] | None = None,
    ):
        self.layer, self.who, self.measure = layer, who, measure
        self.look = look or _ignore
        self.on_support = False  # the gradient of the stored values is wanted too
        self._waiting: list[tuple[int, Seen]] = []  # by the number of their pass
        self._seen: list[tuple[Any, Seen]] = []  # by the gradient that holds it (a weak reference), the last at the end
        self._base: Seen | None = None  # what the pass in progress adds to
        self._handles: list[Any] = []

    def start(self, on_support: bool = False) -> None:
        """From the next forward pass on its passes are measured, and what was seen before is forgotten."""
        self.stop()
        values = self.layer.values
        if not values.requires_grad:
            return  # one that is frozen has no passes
        self.on_support = on_support
        self._handles = [values.register_hook(self._before), values.register_post_accumulate_grad_hook(self._after)]
        self.layer.observers = (*self.layer.observers, self)

    def stop(self) -> None:
        """Nothing is measured any more."""
        self.forget()
        self.layer.observers = tuple(o for o in self.layer.observers if o is not self)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def measures(self) -> bool:
        """Whether passes are measured."""
        return self in self.layer.observers

    def forget(self) -> None:
        """Forgets what was seen."""
        self._waiting, self._seen, self._base = [], [], None

    def has_gradient(self) -> bool:
        """Whether ``values.grad`` holds something: reads a number."""
        grad = self.layer.values.grad
        return grad is not None and bool(grad.any())

    def seen(self) -> Seen | None:
        """What the passes that are in ``values.grad`` now have reported; None if there are none.

        A gradient that is another tensor than passes have accumulated in was scaled or clipped: it stands for the last that was.
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
        """What the passes have reported that accumulated in this very tensor."""
        return next((seen for reference, seen in self._seen if reference() is grad), None) if grad is not None else None

    # ---------------------------------------------------------------- the hooks

    def report(self, x: Tensor, version: int, dy: Tensor) -> None:
        """The gradient of an output is known: hook of the output."""
        if not self.measures or is_wrapped(dy) or is_batch_of_gradients(dy):
            return  # the step that wanted it is over; or a transform, which never accumulates
        _check_version(self.who, x, version)
        with torch.no_grad():
            seen = self.measure(dy.detach(), x)
        if seen is not None:
            self._waiting.append((_number(), seen))

    def _before(self, grad: Tensor) -> None:
        """A gradient of the values is about to be added to ``values.grad``: if that is None or zero, what it held is gone."""
        held, self._base = self.layer.values.grad, None
        if self._seen and self.has_gradient():
            self._base = self._of(held) or self._seen[-1][1]  # another tensor: scaled or clipped
        self._seen = [
            (reference, seen) for reference, seen in self._seen if reference() is not None and reference() is not held
        ]
        if self.on_support:
            self._waiting.append((_number(), Seen(active=grad.detach().clone())))

    def _after(self, values: Tensor) -> None:
        """It has been added."""
        waiting, self._waiting = self._waiting, []
        number, grad = _number(), values.grad
        mine = [seen for at, seen in waiting if at == number]
        held = self._base
        for seen in mine:
            held = seen if held is None else held.plus(seen)
        if held is not None and grad is not None:
            self._seen.append((weakref.ref(grad), held))


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


def _number() -> int:
    """The number of the backward pass that runs in this thread."""
    return backward_pass()


def _ignore(_layer: Any) -> None:
    return None


class Tap:
    """Tells of every backward pass of a layer while it is open, whatever becomes of the gradient: for diagnoses, as a context."""

    def __init__(self, layer: Any, tell: Callable[[Tensor, Tensor], Any]):
        self.layer, self.tell = layer, tell

    def __enter__(self) -> "Tap":
        self.layer.observers = (*self.layer.observers, self)
        return self

    def __exit__(self, *_: object) -> None:
        self.layer.observers = tuple(o for o in self.layer.observers if o is not self)

    def look(self, _layer: Any) -> None:
        """Any support will do."""

    def report(self, x: Tensor, version: int, dy: Tensor) -> None:
        """The gradient of an output is known: hook of the output."""
        _check_version(type(self.layer).__name__, x, version)
        self.tell(dy.detach(), x)
