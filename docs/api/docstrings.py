"""What Markdown does not know in docstrings: roles become links or code, comments behind fields become their text.

    :class:`~gossamer.Topology`             a link to its entry in the reference; code if there is none
    interval: int = 1  # steps since ...    the comment is shown with the field

An extension of griffe, which reads the docstrings for mkdocstrings; ``mkdocs.yml`` names it.
"""

import re
from pathlib import Path
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
COMMENT = re.compile(r"  # (.+)$", re.MULTILINE)
PAGES = "\n".join(page.read_text() for page in Path(__file__).parent.glob("*.md"))
PUBLIC = set(re.findall(r"^::: gossamer\.(\w+)$", PAGES, re.MULTILINE))  # what has an entry to link to


class Roles(griffe.Extension):
    """Every docstring, once its object is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Completes one docstring."""
        if obj.docstring is None and obj.is_attribute and (parent := obj.parent) is not None and parent.is_class:
            if found := COMMENT.search(obj.source):
                obj.docstring = griffe.Docstring(found[1], parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(shown, obj.docstring.value)


def shown(role: re.Match[str]) -> str:
    """A role in Markdown."""
    name = role[1]
    return f"[`{name}`][gossamer.{name}]" if name in PUBLIC else f"`{name}`"
