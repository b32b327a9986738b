"""Shows the roles of docstrings, such as :class:`~gossamer.Topology`, as links to the reference, or as code.

An extension of griffe, which reads the docstrings for mkdocstrings; ``mkdocs.yml`` names it.
"""

import re
from pathlib import Path
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
PAGES = "\n".join(page.read_text() for page in Path(__file__).parent.glob("*.md"))
PUBLIC = set(re.findall(r"^::: gossamer\.(\w+)$", PAGES, re.MULTILINE))  # what has an entry to link to


class Roles(griffe.Extension):
    """Every docstring, once its object is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replaces what it finds in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(shown, obj.docstring.value)


def shown(role: re.Match[str]) -> str:
    """A role in Markdown."""
    name = role[1]
    return f"[`{name}`][gossamer.{name}]" if name in PUBLIC else f"`{name}`"
