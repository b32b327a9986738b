"""The subset of YAML for configurations: one mapping of strings to plain values.

Everything else is refused, with its line: duplicate keys, anchors and aliases (with them ten lines can hold a billion
values), deep nesting, dates, binary data, tags.
"""

from pathlib import Path
from typing import Any

import yaml

from .._errors import UsageError, nearest

LARGEST = 1_000_000  # bytes of a file
DEEPEST = 20  # levels of nested collections
PLAIN_VALUES = (str, bool, int, float, type(None), list, dict)


class Strict(yaml.SafeLoader):
    """Refuses everything that no configuration needs. It raises the exceptions of yaml, which hold the line."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Reads one value of the file, at any depth."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not allowed: write the value again", event.start_mark
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.constructor.ConstructorError(None, None, f"nested more than {DEEPEST} deep", event.start_mark)
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are different strings."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(name)[:40]!r} is not a string", key.start_mark
                )
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value of a plain type."""
        value = super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        if not isinstance(value, PLAIN_VALUES):
            problem = f"a setting cannot be a {type(value).__name__}: write it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError."""
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        what = (
            "this is a folder"
            if path.is_dir()
            else f"there is no such configuration file{nearest(path.name, siblings)}"
        )
        raise UsageError(str(path), what, remedy="give the path of a YAML file; write settings as --key value")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise UsageError(str(path), f"a configuration has at most {LARGEST:,} bytes", got=size)
        tree = yaml.load(path.read_bytes(), Strict)
    except OSError as error:
        raise UsageError(str(path), f"cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(path), f"not valid YAML: {_said(error)}") from error
    if not isinstance(tree, dict):
        raise UsageError(
            str(path),
            "a configuration must be a mapping of keys to values",
            got=None if tree is None else str(tree)[:60],
        )
    return tree


def _said(error: Exception) -> str:
    """The line number and the problem of a YAML error, on one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return where + " ".join(str(problem or error).split())[:200]
