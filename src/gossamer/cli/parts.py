"""Parts of a run (task, model, method, optimizer, penalty, target): a name, and the settings of its constructor.

A name is in the catalog, or it is the import path of a class or function, ``my_package.MyTopology``. Each parameter of
the constructor is a setting, with its type, its default and its line of the docstring. The parameters in ``GIVEN`` are
no settings: the run passes its own values for them.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from .._errors import UsageError, nearest
from ..penalties import Penalty
from ..rules import SparseOptimizer
from .catalog import CATALOG, Constructor

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
GIVEN: dict[str, tuple[str, ...]] = {  # kind -> parameters that the run passes
    "task": (),
    "model": ("shape", "classes", "rng"),
    "method": ("model", "optimizer", "final_density", "min_fan_in", "budget"),
    "optimizer": ("params", "rule", "steps", "allow_compact", "density"),
    "penalty": (),
    "target": ("optimizer", "density", "steps", "multilevel"),
}
REQUIRED = inspect.Parameter.empty


class Setting(NamedTuple):
    """The declaration of one setting."""

    type: Any  # a type of plain values
    default: Any  # REQUIRED if the signature has no default

    @property
    def may_be_none(self) -> bool:
        """Whether None is a valid value."""
        return NoneType in get_args(self.type) or self.type in (NoneType, Any)


@dataclass(frozen=True)
class Part:
    """The name of a part and the values of all its settings. ``make`` calls the constructor."""

    kind: str
    name: str
    settings: Mapping[str, Any]  # the value of a penalty is a Part

    def __hash__(self) -> int:
        return hash((self.kind, self.name, repr(self.settings)))

    @property
    def constructor(self) -> Constructor:
        """The class or function with this name. Raises UsageError."""
        return constructor_of(self.kind, self.name, f"{self.kind} {self.name}")

    def takes(self, name: str) -> bool:
        """Whether the constructor has this parameter."""
        return name in parameters(self.constructor)

    def make(self, **given: Any) -> Any:  # Any: the type depends on the constructor
        """Calls the constructor with the settings and with those of ``given`` that are among its parameters.

        Raises: UsageError if the constructor refuses its arguments.
        """
        constructor = self.constructor
        takes = parameters(constructor)
        values = {key: value.make() if isinstance(value, Part) else value for key, value in self.settings.items()}
        try:
            return constructor(**{key: value for key, value in {**values, **given}.items() if key in takes})
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.kind} {self.name}", f"refuses its settings: {error}") from error


def constructor_of(kind: str, name: object, where: str) -> Constructor:
    """The class or function of a name in the catalog, or of an import path. Raises UsageError."""
    known = CATALOG[kind]
    if isinstance(name, str) and name in known:
        return known[name]
    if not isinstance(name, str) or not IMPORT_PATH.fullmatch(name):
        what = f"unknown {kind} {name!r}{nearest(str(name), known)}"
        raise UsageError(where, what, remedy=f"one of {', '.join(known)}; or an import path, my_package.MyClass")
    return imported(kind, name, where)


def imported(kind: str, path: str, where: str) -> Constructor:
    """The class or function at an import path. Modules of the current folder are found too. Raises UsageError."""
    module, _, attribute = path.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, SyntaxError) as error:
        remedy = f"name a module of the current folder or an installed package; or one of {', '.join(CATALOG[kind])}"
        raise UsageError(where, f"{kind} {path}: cannot import {module}: {error}", remedy=remedy) from error
    if found is None:
        names = [name for name in dir(sys.modules[module]) if not name.startswith("_")]
        raise UsageError(where, f"{kind} {path}: module {module} has no {attribute!r}{nearest(attribute, names)}")
    if not callable(found):
        raise UsageError(where, f"{kind} {path} is neither a class nor a function", got=found)
    return found


def parameters(constructor: Constructor) -> dict[str, inspect.Parameter]:
    """The parameters of a signature that can be passed by name. Raises UsageError if it cannot be read."""
    try:
        signature = inspect.signature(constructor)
    except (TypeError, ValueError) as error:
        raise UsageError(str(constructor), f"its signature cannot be read: {error}") from error
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return {name: p for name, p in signature.parameters.items() if p.kind not in unnamed}


def is_rule(constructor: Constructor) -> bool:
    """Whether an optimizer's constructor makes a rule. The constructor of a torch optimizer takes ``params``."""
    return "params" not in parameters(constructor)


def constructors(kind: str, constructor: Constructor) -> list[Constructor]:
    """All constructors that declare settings of a part; later ones override earlier ones.

    The SparseOptimizer declares the step size and the weight decay of a rule.
    """
    return [SparseOptimizer, constructor] if kind == "optimizer" and is_rule(constructor) else [constructor]


def settings_of(kind: str, constructor: Constructor) -> dict[str, Setting]:
    """The settings of a part by name.

    Raises: UsageError if a parameter has no default and YAML cannot hold its value.
    """
    found: dict[str, Setting] = {}
    for one in constructors(kind, constructor):
        hints = hints_of(one)
        for name, parameter in parameters(one).items():
            if name in GIVEN.get(kind, ()) or is_penalty(hints.get(name)):
                continue
            guess = type(parameter.default) if parameter.default not in (REQUIRED, None) else Any
            kind_of_value = plain(hints.get(name, guess))
            if kind_of_value is not None and name != "name":
                found[name] = Setting(kind_of_value, parameter.default)
            elif parameter.default is REQUIRED:
                who = getattr(one, "__qualname__", str(one))
                what = f"YAML cannot hold its parameter {name!r}" if name != "name" else "'name' cannot be a parameter"
                raise UsageError(f"{kind} {who}", what, remedy=f"give {name} a default, or rename it")
    return found


def has_penalty(constructor: Constructor) -> bool:
    """Whether a rule's constructor takes a penalty."""
    return is_penalty(hints_of(constructor).get("penalty"))


def is_penalty(hint: object) -> bool:
    """Whether the type of a parameter is Penalty. A penalty is a part itself."""
    return hint is Penalty


def hints_of(constructor: Constructor) -> dict[str, Any]:
    """The types of the parameters of a class or function; {} if they cannot be evaluated."""
    try:
        return get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    except (NameError, TypeError, AttributeError):
        return {}


def plain(hint: Any) -> Any:
    """The subset of a type that YAML can hold: str, numbers, bool, None, tuples and lists; None if it is empty."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float, bool, str, NoneType, Any, list, tuple) or origin is Literal:
        return hint
    if origin in (Union, UnionType):
        kept = [one for one in map(plain, inner) if one is not None]
        return Union[tuple(kept)] if any(one is not NoneType for one in kept) else None  # noqa: UP007
    if origin in (tuple, list) and all(one is Ellipsis or plain(one) is not None for one in inner):
        return hint
    return None


def default_part(kind: str, name: str) -> Part:
    """A part with the defaults of its constructor."""
    declared = settings_of(kind, CATALOG[kind][name])
    return Part(kind, name, {key: setting.default for key, setting in declared.items()})


def helps(kind: str, constructor: Constructor) -> dict[str, str]:
    """The text on each setting in the docstrings of the constructors and their base classes."""
    from docstring_parser import parse

    found: dict[str, str] = {}
    declaring: list[Constructor] = []
    for one in constructors(kind, constructor):
        declaring += reversed(inspect.getmro(one)) if inspect.isclass(one) else [one]
    for one in declaring:
        for parameter in parse(vars(one).get("__doc__") or "" if inspect.isclass(one) else one.__doc__ or "").params:
            for name in parameter.arg_name.split(", "):
                found[name] = " ".join((parameter.description or "").split()).replace("``", "")
    return found
