"""Tables on the terminal: by rich where it is installed and the output is a terminal, as aligned plain text otherwise."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def live() -> bool:
    """Whether standard output is a terminal that rich can draw on."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = (), left: int = 1
) -> None:
    """Prints a table of strings, its first ``left`` columns aligned to the left, and the notes below it."""
    if live():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        look = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}  # eight columns fit into 80 characters
        table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left", **look)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < left else "right")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table, markup=False)
        return
    print(f"\n{title}\n\n{aligned(columns, rows, left)}")
    for note in notes:
        print(note)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The table as lines of text, its first ``left`` columns to the left."""
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
