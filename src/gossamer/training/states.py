"""Checks of the types of the parts of a saved state. A state may come from any file, so its types are not known."""

# pyright: strict

from typing import Any, TypeGuard


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether it is a dict, of anything."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether it is a list, of anything."""
    return isinstance(value, list)


def is_sequence(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether it is a list or a tuple, of anything."""
    return isinstance(value, (list, tuple))


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is an int of at least 0, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
