# pyright: reportUnknownMemberType=false
"""A module whose values are indexed by a support: the support, its public copy, and the owner that may change it.

Kernels read the support, and other code must not write to it. The buffers ``crow`` and ``col`` are its public copy, for
``state_dict``, ``.to()`` and broadcasts of buffers. Other code may write to the copy or replace it. The next use of the
module detects this by the identity and the version of the two tensors, without reading their contents. It then verifies
the copy, and adopts or refuses it. Under ``shadow`` the support is where the values are not zero: there is no copy.
"""

import weakref
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ._backend.dispatch import is_placeholder
from ._backend.index.op import rows_of
from ._errors import UsageError
from ._grid import index_problems
from .layouts import Layout, write_
from .observe import Observed
from .products.trilinear import check_index
from .support import Support

T = TypeVar("T", bound="Indexed")
INDEX = ("crow", "col")  # the buffers


class Owner(Protocol):
    """An object that changes the support of a module: a :class:`~gossamer.Rewirer`, a :class:`~gossamer.Multilevel`."""

    def release(self) -> None:
        """Stops observing and changing the module: it is called when the module gets another owner."""
        ...

    def notice(self, layer: "Indexed") -> None:
        """Is called after a ``state_dict`` was loaded into the module."""
        ...


class Indexed(Observed):
    """A module with ``values`` on a ``support``. Do not make it directly: see :class:`~gossamer.SparseLayer`."""

    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, dense_shape: Sequence[int], support: Support, layout: Layout, values: nn.Parameter):
        super().__init__()
        self.dense_shape = torch.Size(dense_shape)
        self.block, self.layout, self.values = support.block, layout, values
        self._owner: weakref.ref[Owner] | None = None
        self._copied: tuple[Tensor | None, Tensor | None, int, int, Tensor] | None = None  # see _remember
        self._looked_up: tuple[int, int] | None = None  # shadow: address and version of the values when last read
        self.adopt_(support)
        self._mark_values()
        self.register_load_state_dict_pre_hook(Indexed._adopt_saved)
        self.register_load_state_dict_post_hook(Indexed._tell_owner)
        self.register_state_dict_post_hook(Indexed._check_saved)

    # ---------------------------------------------------------------- the support

    @property
    def support(self) -> Support:
        """Which blocks of the (out, in) or (out, in kh kw) matrix may be non-zero; under ``shadow``, which are.

        Raises: UsageError if ``crow`` and ``col`` have been changed to an index that does not fit the values.
        """
        if self.layout.follows:
            if not torch.compiler.is_exporting():  # an exported product does not need the index
                self._follow_values()
            return self._support
        if torch.compiler.is_compiling():
            return self._support
        buffers, seen, s = self._buffers, self._copied, self._support
        crow, col = buffers.get("crow"), buffers.get("col")
        if (
            seen is None
            or crow is None
            or col is None
            or crow is not seen[0]
            or col is not seen[1]
            or crow._version + col._version != seen[2]
        ):
            self._read_copy()
        elif s.crow._version + s.col._version + s.ccol._version + s.row._version + s.perm._version != seen[3]:
            self._refuse(["the tensors of the support were written to, but a support must not change"])
        return self._support

    @property
    def adopted(self) -> Support:
        """The support that was adopted last. Neither its public copy nor the values are checked."""
        return self._support

    @torch.inference_mode(False)
    @torch.no_grad()
    def adopt_(self, s: Support) -> None:
        """Makes ``s`` the support. The caller must change the values too, as :func:`~gossamer.set_support_` does."""
        if s.crow.is_inference() or s.perm.is_inference():
            s = Support(s.shape, s.block, *(t.clone() for t in (s.crow, s.col, s.ccol, s.row, s.perm)))
        is_first = "_support" not in vars(self)
        self._support = s
        if self.layout.follows:
            return
        for name in INDEX:
            old, new = self._buffers.get(name), getattr(s, name)
            alike = old is not None and (old.shape, old.device) == (new.shape, new.device) and not old.is_inference()
            if old is not None and alike and not is_first:
                old.copy_(new)  # in place, as the values: index and values agree in a state_dict that shares memory
            else:
                self.register_buffer(name, new.clone())
        self._remember()

    @property
    def index_bytes(self) -> int:
        """Bytes of the support and of its public copy."""
        copies = [self._buffers[name] for name in INDEX if name in self._buffers]
        return self.support.bytes + sum(t.numel() * t.element_size() for t in copies if t is not None)

    @property
    def density(self) -> float:
        """Kept weights divided by all weights."""
        return self.support.weights / self.dense_shape.numel()

    def extra_repr(self) -> str:
        """Shape, density and layout, for ``print(model)``."""
        sizes = ", ".join(str(v) for v in self.dense_shape)
        tile = "" if self.block == (1, 1) else f", block={self.block}"
        kept = f"density={self.density:.4g}, n={self.support.n}"
        return f"{sizes}, {kept}, layout={self.layout.name}{tile}, bias={self.bias is not None}"

    def train(self: T, mode: bool = True) -> T:
        """As ``nn.Module.train``. Under ``shadow`` the support is then read from the values again: torch does not count
        writes to ``.data``."""
        self._looked_up = None
        return super().train(mode)

    # ---------------------------------------------------------------- the public copy

    def _remember(self) -> None:
        """Records the copy, the versions of copy and support, and the values that belong to them."""
        crow, col = (self._buffers[name] for name in INDEX)
        assert crow is not None and col is not None
        self._copied = (crow, col, crow._version + col._version, self._support.version, self.values)

    @torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
    @torch.inference_mode(False)
    @torch.no_grad()
    def _read_copy(self) -> None:
        """Handles a copy that was written or replaced: the index is the same, or is adopted, or is refused."""
        found: list[Tensor] = []
        for name in INDEX:
            t = self._buffers.get(name)
            if not isinstance(t, Tensor):
                self._refuse([f"the buffer {name} was removed"])
            elif t.is_inference():
                self._buffers[name] = t = t.clone()
            found += [t] if isinstance(t, Tensor) else []
        (crow, col), s, seen = found, self._support, self._copied
        check_index(type(self).__name__, crow, col)
        if crow.is_meta or col.is_meta:
            self._support = s if s.crow.is_meta else s.to("meta")
        elif not _equal(crow, s.crow) or not _equal(col, s.col):
            self._adopt_copy(crow, col, s, values_changed=seen is not None and seen[4] is not self.values)
        elif crow.device != s.crow.device:
            self._support = s.to(crow.device)
        self._remember()

    def _adopt_copy(self, crow: Tensor, col: Tensor, s: Support, values_changed: bool) -> None:
        """Adopts another index. The values must have been replaced with it, unless they are stored densely."""
        reasons = index_problems(crow, col, s.shape, s.block)
        if not reasons and self.layout.storage == "compact":
            if self.values.shape[0] != col.numel():
                reasons = [f"it has {col.numel()} blocks, but there are values for {self.values.shape[0]}"]
            elif not values_changed:
                reasons = ["the values were not replaced with it: they belong to the blocks of the old index"]
        if reasons:
            self._refuse(reasons)
        self._support = Support.from_index(crow, col, s.shape, s.block)

    def _refuse(self, reasons: list[str]) -> None:
        who = f"{type(self).__name__} of {tuple(self.dense_shape)}"
        what = "other code has changed the buffers crow and col to an index that this layer cannot use"
        remedy = "load_state_dict with index and values together, or gs.set_support_; gs.AveragedModel for an average"
        raise UsageError(who, what, reasons=reasons, remedy=remedy)

    @torch.compiler.disable()  # pyright: ignore[reportUntypedFunctionDecorator]
    @torch.no_grad()
    def _follow_values(self) -> None:
        """Shadow: if the values were written to, finds their non-zeros again, and adopts the index if it changed."""
        if is_placeholder(self.values):  # then the product does not need the index
            return
        version = -1 if self.values.is_inference() else self.values._version  # inference tensors have no version
        now = (self.values.data_ptr(), version)
        if (now == self._looked_up and version >= 0) or self.values.shape != self.dense_shape:
            return
        self._looked_up = now
        (crow, col), known = rows_of(self.values.flatten(1)), self._support
        if crow.device == known.crow.device and torch.equal(crow, known.crow) and torch.equal(col, known.col):
            return
        self._support = Support.of_index(crow, col, known.shape)

    # ---------------------------------------------------------------- saving and loading

    @staticmethod
    def _check_saved(layer: "Indexed", state: dict[str, Any], prefix: str, _local_metadata: object) -> None:
        """Checks that index and values of a new state_dict agree. Under ``shadow`` adds the index of the values."""
        if layer.layout.follows:
            state.update({prefix + name: getattr(layer.support, name) for name in INDEX})
        else:
            layer._read_copy()  # a write through .data or NumPy does not change the version

    @staticmethod
    @torch.no_grad()
    def _adopt_saved(layer: "Indexed", state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Before a state_dict is loaded: verifies its index and adopts it, or refuses it and changes nothing.

        After a load the support is another object, even with the same blocks: so owners start a new window.
        """
        errors: list[str] = rest[-1]  # after metadata, strict, missing and unexpected keys
        crow, col, values = (state.get(prefix + name) for name in ("crow", "col", "values"))
        s = layer.adopted
        problems = _state_problems(layer, crow, col, values)
        if problems:
            errors.extend(f"{prefix.rstrip('.') or type(layer).__name__}: {problem}" for problem in problems)
            for name in (*INDEX, "values"):  # torch copies in spite of errors, so it gets the present tensors
                state[prefix + name] = (getattr(s, name) if name in INDEX else layer.values).detach()
        elif crow is not None and col is not None:
            same = _equal(crow, s.crow) and _equal(col, s.col)
            new = (s.again() if same else Support.from_index(crow, col, s.shape, s.block)).to(layer.values.device)
            layer.adopt_(new)
            if layer.layout.storage == "compact" and layer.values.shape[0] != new.n:
                write_(layer.values, layer.values.new_zeros(new.n, *layer.values.shape[1:]))
        if layer.layout.follows:
            for name in INDEX:
                state.pop(prefix + name, None)

    @staticmethod
    def _tell_owner(layer: "Indexed", _keys: object) -> None:
        """After a state_dict was loaded: the owner carries its state at once, so that a copy is consistent."""
        if (owner := layer.owner) is not None:
            owner.notice(layer)

    def _mark_values(self) -> None:
        """Marks compact values, which are vectors, so that an optimizer can distinguish them from biases."""
        mark: Any = self.values  # torch declares no such attribute
        mark.compact = self.layout.storage == "compact"

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a file, has no owner, and no record of the tensors of this module."""
        return {**super().__getstate__(), "_owner": None, "_copied": None, "_looked_up": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark_values()  # a copy of a parameter loses its attributes

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses ``torch.jit.script``, which calls this and would put the returned module into the model itself."""
        what = f"it compiles the source of a module, and {type(self).__name__} takes decisions at run time"
        remedy = "torch.jit.script(gossamer.densify(copy.deepcopy(model))), or torch.jit.trace"
        raise UsageError("torch.jit.script", what, remedy=remedy)

    # ---------------------------------------------------------------- the owner

    @property
    def owner(self) -> Owner | None:
        """The :class:`~gossamer.Rewirer` or :class:`~gossamer.Multilevel` that changes the support, or None."""
        return None if self._owner is None else self._owner()

    def give_to(self, owner: Owner | None) -> None:
        """Makes ``owner`` the object that changes the support. The former owner is released."""
        if (before := self.owner) is not None and before is not owner:
            before.release()
        self._owner = None if owner is None else weakref.ref(owner)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two index tensors, on any devices, hold the same numbers."""
    known = not (a.is_meta or b.is_meta or a.is_floating_point())
    return known and a.shape == b.shape and torch.equal(a.to(b.device, b.dtype), b)


def _state_problems(layer: Indexed, crow: Tensor | None, col: Tensor | None, values: Tensor | None) -> list[str]:
    """Why index and values of a state_dict must not be loaded, in sentences; [] if they may."""
    s = layer.adopted
    if crow is None or col is None:
        alone = values is not None or crow is not None or col is not None
        what = "values, crow and col must be loaded together: values belong to one support"
        return [what] if alone else []
    if problems := index_problems(crow, col, s.shape, s.block):
        return problems
    if values is None:
        same = _equal(crow, s.crow) and _equal(col, s.col)
        return [] if same else ["the index is of another support, and its values are missing"]
    expected = tuple(layer.dense_shape)
    if layer.layout.storage == "compact":
        expected = (col.numel(), *layer.values.shape[1:])
    if tuple(values.shape) == expected:
        return []
    return [f"values have shape {tuple(values.shape)}, and {col.numel()} kept blocks need {expected}"]
