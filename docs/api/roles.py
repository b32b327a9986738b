"""Shows the roles of docstrings, such as :class:`~gossamer.Topology`, as the code `Topology`: the site is Markdown.

An extension of griffe, which reads the docstrings for mkdocstrings; ``mkdocs.yml`` names it.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


class Roles(griffe.Extension):
    """Every docstring, once its object is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replaces what it finds in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
