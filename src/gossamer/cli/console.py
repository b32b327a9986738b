"""Tables: drawn by rich on a terminal if it is installed, else as aligned plain text."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec


def help_format() -> type:
    """The formatter of help texts: it shows the defaults and keeps the line breaks of the description."""
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import DefaultHelpFormatter

    return type("Format", (RawDescriptionHelpFormatter, DefaultHelpFormatter), {})


def live() -> bool:
    """Whether standard output is a terminal that rich can draw on."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def width() -> int | None:
    """Characters of a line: the variable COLUMNS, else the width of the terminal, else None."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int | None, first: Sequence[str]) -> list[int]:
    """The indices of the columns that fit into ``most`` characters.

    Columns in ``first`` are left out first, then columns from the right. The two columns on the left always stay. Cells
    are never cut.
    """
    sizes = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    kept = list(range(len(columns)))
    order = [columns.index(name) for name in first if name in columns]
    order += [i for i in reversed(kept) if i not in order]
    for i in order:
        if most is None or sum(sizes[k] + 2 for k in kept) - 2 <= most:
            break
        if i > 1:
            kept.remove(i)
    return kept


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    left: int = 1,
    drop: Sequence[str] = (),
) -> None:
    """Prints a table of strings and the notes below it.

    Args:
        title: line above the table.
        columns: names of the columns.
        rows: cells.
        notes: paragraphs below the table.
        left: number of columns, from the left, that are aligned to the left.
        drop: columns to leave out first if the table is too wide; then columns from the right are left out.
    """
    most = width()
    kept = fitted(columns, rows, most, drop)
    if len(kept) < len(columns):
        lacking = [name for i, name in enumerate(columns) if i not in kept]
        notes = [note for note in notes if note.partition(":")[0].lower() not in map(str.lower, lacking)]
        notes = [*notes, f"Not shown in {most} characters: {', '.join(lacking)}."]
    columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    notes = [line for note in notes for line in (textwrap.wrap(note, most) if most else [note])]
    if live():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        look = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False, "show_edge": False}
        table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left", **look)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < left else "right", no_wrap=i >= left)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table, markup=False)
        return
    print(f"\n{title}\n\n{aligned(columns, rows, left)}")
    for note in notes:
        print(note)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The table as lines of text, its first ``left`` columns aligned to the left."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])

    def joined(line: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )

    return "\n".join(joined(line).rstrip() for line in lines)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, marks, *rows]) + "\n"
