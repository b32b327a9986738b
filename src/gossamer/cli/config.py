# pyright: strict
"""From YAML and flags to a configuration: merge the layers -> find the constructors -> check the types -> construct.

A part with settings is ``method: csst`` or ``method: {name: csst, every: 50}`` in YAML, ``--method csst --method.every
50`` on the command line. A layer is a source (a file or the command line) and its settings. A later layer overrides an
earlier one. If it gives a part another name, the earlier settings of that part are dropped.
"""

import re
import textwrap
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .._errors import UsageError
from .catalog import CATALOG
from .parts import REQUIRED, Part, Setting, constructor_of, has_penalty, helps, settings_of
from .record import KEYS as KEYS
from .record import PARTS as PARTS
from .record import Config as Config
from .record import Tree as Tree
from .record import check_range
from .record import differences as differences
from .record import flat as flat
from .record import settings as settings
from .strict_yaml import read_yaml as read_yaml
from .together import check_parts, check_together

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PENALTY = "optimizer.penalty"
PATHS = {**{name: name for name in PARTS}, PENALTY: "penalty"}  # dotted key of a part -> its kind
DEFAULTS: dict[str, str] = {name: cast(Part, getattr(Config, name)).name for name in PARTS}
RENAMED = {  # last word of an old key -> candidates for the new key
    "drop": ("drop_fraction",),
    "share": ("allocate", "fraction"),
    "unit": ("block",),
    "reborn": ("allow_regrow",),
    "move": ("step_optimizer",),
    "final": ("final_density", "density"),
    "final_density": ("density",),
    "lam": ("penalty.lam",),
    "beta": ("penalty.beta",),
    "group": ("penalty.group",),
    "shrinking": ("penalty.shrinking",),
    "beta1": ("betas",),
    "beta2": ("betas",),
    "keep": ("density",),
    "reach": ("target.reach",),
}

Layer = tuple[str, Mapping[str, Any]]  # (source, settings); error messages name the source


class Value(NamedTuple):
    """The value of a setting before its type is checked, and its source."""

    value: Any  # anything that YAML can hold
    where: str


class Schema(NamedTuple):
    """The chosen parts and the settings that they declare."""

    names: dict[str, str]  # dotted key of a part -> its name
    settings: dict[str, Setting]  # by dotted key

    def problem(self, key: str) -> tuple[str, str]:
        """The problem with an unknown key, and the remedy."""
        path = max((path for path in self.names if key.startswith(f"{path}.")), key=len, default="")
        own = [known for known in self.settings if known.startswith(f"{path}.")] if path else []
        names = [f"{path}.name", *own] if path else [*self.settings, *PARTS]
        what = f"unknown key {key!r}" + (f" of {PATHS[path]} {self.names[path]}" if path else "")
        words = key.rpartition(".")[2]
        moved = [f"{path}.{new}" for new in RENAMED.get(words, ())] + [*RENAMED.get(words, ()), words]
        found = [new for new in moved if new in self.settings or new in PATHS]
        last = {name.rpartition(".")[2]: name for name in reversed(names)}  # a path in common makes no names similar
        found += [last[word] for word in get_close_matches(words, last, n=1, cutoff=0.5)]
        near = f"; did you mean {found[0]!r}?" if found else ""
        has = ", ".join(["name", *(known.removeprefix(f"{path}.") for known in own)])
        return what + near, f"it has {has}" if path else "gossamer run --help lists the keys"


def parse(tree: Mapping[str, Any], where: str) -> Config:
    """The configuration of one layer. Raises UsageError."""
    return configure((where, tree))


def configure(*layers: Layer) -> Config:
    """The configuration of these layers. Raises UsageError on unknown keys and names, and on wrong types."""
    given = merged(layers)
    chosen = schema(given)
    config = constructed(chosen, typed(chosen, given))
    check_together(config)
    check_parts(config)
    return config


def merged(layers: tuple[Layer, ...]) -> dict[str, Value]:
    """All given settings with their sources, by dotted key (``method.name`` is the name of the method)."""
    out: dict[str, Value] = {}
    for where, tree in layers:
        layer = dict(spread(tree))
        for path in PATHS:
            name, before = layer.get(f"{path}.name"), out.get(f"{path}.name", Value(DEFAULTS.get(path), "")).value
            if f"{path}.name" in layer and name != before:
                out = {key: value for key, value in out.items() if not key.startswith(f"{path}.")}
        out.update({key: Value(value, where) for key, value in layer.items()})
    return out


def spread(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted key. A value that is no mapping under the key of a part is the name of the part."""
    for key, value in tree.items():
        if key in PATHS and isinstance(value, Mapping):
            inner = cast(Mapping[str, Any], value)
            yield from spread({f"{key}.{name}": one for name, one in inner.items()})
        else:
            yield (f"{key}.name" if key in PATHS else key), value


def schema(given: Mapping[str, Value]) -> Schema:
    """The settings of the chosen parts and of the run. Raises UsageError on an unknown name or key."""
    found = Schema({}, {key: one for key, one in settings_of("run", Config).items() if key not in PARTS})
    for path, kind in PATHS.items():
        name, where = given.get(
            f"{path}.name", Value(DEFAULTS.get(path), given.get("optimizer.name", Value(None, "gossamer run")).where)
        )
        if path == PENALTY and not has_penalty(constructor_of("optimizer", found.names["optimizer"], where)):
            continue
        if path == PENALTY and name is None:
            what = f"optimizer {found.names['optimizer']} needs a penalty"
            raise UsageError(where, what, remedy="--optimizer.penalty l1 --optimizer.penalty.lam 0.1, for example")
        constructor = constructor_of(kind, name, where)
        found.names[path] = str(name)
        found.settings.update({f"{path}.{key}": one for key, one in settings_of(kind, constructor).items()})
    for key, value in given.items():
        if key not in found.settings and key.removesuffix(".name") not in found.names:
            what, remedy = found.problem(key)
            raise UsageError(value.where, what, remedy=remedy)
    return found


def typed(chosen: Schema, given: Mapping[str, Value]) -> Tree:
    """All settings by dotted key, converted to the types that the constructors declare. Raises UsageError."""
    for key, one in chosen.settings.items():
        if one.default is REQUIRED and key not in given:
            raise UsageError("gossamer run", f"{key} has no default, and no value was given", remedy=f"--{key} VALUE")
    tree: Tree = {}
    for key, value in given.items():
        if key in chosen.settings:
            place = tree
            *outer, last = key.split(".")
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = value.value
    parser: Any = parser_of(chosen)  # Any: jsonargparse is partly untyped
    try:
        found = parser.parse_object(tree)
    except (ArgumentError, OverflowError) as error:
        key = re.search(r'key "([\w.]+)"', str(error))
        where = given[key[1]].where if key is not None and key[1] in given else next(iter(given.values())).where
        remedy = "gossamer run --help lists the keys and their types; a list is written '[64, 32]'"
        raise UsageError(where, expected(str(error)), remedy=remedy) from error
    values: Tree = {key: found[key] for key in chosen.settings}
    for key, one in chosen.settings.items():
        if values[key] is None and not one.may_be_none:
            what, remedy = f"{key}: a value is missing", f"omit the key to get its default, {one.default}"
            raise UsageError(given[key].where, what, remedy=remedy)
        check_range(key, values[key])
    return values


def constructed(chosen: Schema, values: Tree) -> Config:
    """The configuration of checked settings."""
    parts: dict[str, Part] = {}
    for path in reversed(chosen.names):  # the penalty is made before its optimizer
        own = {key.removeprefix(f"{path}."): value for key, value in values.items() if key.startswith(f"{path}.")}
        inner = {"penalty": parts[PENALTY]} if path == "optimizer" and PENALTY in parts else {}
        own = {key: value for key, value in own.items() if "." not in key}
        parts[path] = Part(PATHS[path], chosen.names[path], {**own, **inner})
    run = {key: value for key, value in values.items() if "." not in key}
    return Config(**{name: parts[name] for name in PARTS}, **run)


# -------------------------------------------------------------------- the parser


def parser_of(
    chosen: Schema, names: Mapping[str, Any] | None = None, **more: Any
) -> "ArgumentParser":  # more: arguments of jsonargparse's parser
    """The jsonargparse parser of these parts, with one option for every setting.

    ``names`` adds help texts, and options for the names of the parts with these defaults.
    """
    from jsonargparse import ArgumentParser

    parser: Any = ArgumentParser(**more, exit_on_error=False, allow_abbrev=False)
    lines: dict[str, dict[str, str]] = dict.fromkeys([*chosen.names, ""], {})
    if names is not None:
        lines = {path: helps(PATHS[path], constructor_of(PATHS[path], name, "")) for path, name in chosen.names.items()}
        lines[""] = helps("run", Config)
    for path, name in chosen.names.items():
        about = (constructor_of(PATHS[path], name, "").__doc__ or "").strip().partition("\n\n")[0]
        about = textwrap.fill(" ".join(about.split()), get_terminal_size().columns - 4)
        group = parser.add_argument_group(f"{PATHS[path]} {name}", about)
        if names is not None:
            line = (
                f"{lines[''].get(path, 'penalty that makes the zeros.')} {', '.join(CATALOG[PATHS[path]])}; "
                "or an import path"
            )
            default = {"default": names[path]} if names[path] else {"required": True}
            group.add_argument(f"--{path}.name", type=str, metavar="NAME", help=line, **default)
        for key, one in chosen.settings.items():
            if key.rpartition(".")[0] == path:
                _add(group, key, one, lines[path].get(key.rpartition(".")[2], ""))
    group = parser.add_argument_group("the run")
    for key, one in chosen.settings.items():
        if "." not in key:
            _add(group, key, one, lines[""].get(key, ""))
    return parser


def expected(message: str) -> str:
    """jsonargparse's message on one line: the key, what is expected, what was got."""
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    message = re.sub(r'Parser key "([\w.]+)":\s+', r"\1: ", message)
    message = re.sub(r"\s*\n\s*", " ", message).strip()
    return message if len(message) <= 400 else f"{message[:400]}..."


def _add(group: Any, key: str, one: Setting, line: str) -> None:  # an argument group of jsonargparse
    """Adds one option. It is required if the setting has no default."""
    default = {"required": True} if one.default is REQUIRED else {"default": one.default}
    group.add_argument(f"--{key}", type=one.type, help=line.replace("%", "%%") or None, **default)
