"""Tables on the terminal: by rich where it is installed and the output is a terminal, as aligned plain text otherwise."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def live() -> bool:
    """Whether standard output is a terminal that rich can draw on."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Prints a table of strings and, below it, the notes."""
    if live():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", caption="\n".join(notes), caption_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table, markup=False)
        return
    print(f"\n{title}\n\n{aligned(columns, rows)}")
    for note in notes:
        print(note)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of text, first column to the left."""
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, marks, *rows]) + "\n"
