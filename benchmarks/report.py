"""The shared parts of the benchmarks: arguments, exit code, tables, files, and the tables in a page.

A script measures sections: a dict from names to measurements, ready for JSON. ``run`` calls it, or reads the ``--json``
file of an earlier run, prints the table of each section, and writes it between the marks of a page.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gossamer as gs
import timing
from gate import Mismatch
from gossamer.cli.console import markdown as markdown
from gossamer.cli.console import show as show

Result = dict[str, Any]  # section -> measurements, ready for JSON
QUICK = "QUICK: tiny sizes, these times mean nothing"


class Table(NamedTuple):
    """A table of strings, and notes that are printed below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: int = 1  # columns aligned to the left


Tables = Mapping[str, Callable[[Result], Table]]  # section -> what makes its table


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2, help="threads of torch and of the kernels (default: 2)")
    p.add_argument("--seed", type=int, default=0, help="of weights, supports and inputs (default: 0)")
    p.add_argument("--budget", type=float, metavar="SECONDS", help="time spent on each cell (a variant at a density)")
    p.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs; its times mean nothing")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    p.add_argument("--from", type=Path, metavar="FILE", dest="source", nargs="+", help="read what --json wrote")
    p.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between their marks in this page")
    p.add_argument("--mark", metavar="NAME", help="only this table: <!-- table: NAME --> ... <!-- end -->")
    return p


def run(
    args: argparse.Namespace,
    measure: Callable[[argparse.Namespace], Result],
    tables: Tables,
    texts: Callable[[Result], Mapping[str, str]] = lambda result: {},
) -> int:
    """Measures or reads the sections, then prints the tables and writes the requested files.

    Args:
        args: the arguments of :func:`parser`.
        measure: returns the sections; it raises Mismatch if a gate fails, before the first time is measured.
        tables: the table of each section.
        texts: makes other texts for marks of the page, and other files.

    Returns: the exit code: 0; 1 if a gate failed; 2 if a request cannot be fulfilled.
    """
    timing.prepare(args.threads, args.seed)
    try:
        result = read(args.source) if args.source else {"quick": args.quick, **measure(args)}
        if not args.source:
            result["machine"] = timing.machine()  # after the measurement, when every library is loaded
        more = texts(result)
    except (Mismatch, gs.UsageError) as refusal:
        print(refusal, file=sys.stderr)
        return 1 if isinstance(refusal, Mismatch) else 2
    return finish(args, result, tables, more)


def read(files: Sequence[Path]) -> Result:
    """Reads files of ``--json``. The rows of several files are joined, with the settings of the first file."""
    first, *others = (json.loads(file.read_text()) for file in files)
    for other in others:
        for name, found in other.items():
            if name not in first:
                first[name] = found
            elif isinstance(found, list):
                first[name] += found
    return first


def finish(args: argparse.Namespace, result: Result, tables: Tables, more: Mapping[str, str]) -> int:
    """Prints the table of every measured section, and writes the files. Returns the exit code."""
    made = {name: table(result) for name, table in tables.items() if name in result}
    notes = [timing.about(result["machine"])] + [QUICK] * bool(result["quick"])
    for name, table in made.items():
        made[name] = table = table._replace(notes=[*table.notes, *notes])
        show(table.title, table.columns, table.rows, table.notes, table.left)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown is None:
        return 0
    texts = {name: text_of(table) for name, table in made.items()} | dict(more)
    wanted = list(texts) if args.mark is None else [args.mark]
    missing = [name for name in wanted if name not in texts]
    if missing:
        print(f"nothing was measured here for the mark {missing[0]!r}, but for {', '.join(texts)}", file=sys.stderr)
        return 2
    return fill(args.markdown, {name: texts[name] for name in wanted})


def text_of(table: Table) -> str:
    """A table and its notes in Markdown."""
    return markdown(table.columns, table.rows) + "\n" + "\n".join(table.notes)


def fill(path: Path, texts: Mapping[str, str]) -> int:
    """Writes each text between its marks in a page. Returns 2, without changes, unless every mark is there once."""
    page = path.read_text()
    for name, text in texts.items():
        between = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(between.findall(page)) != 1:
            print(f"{path} must hold the marks <!-- table: {name} --> and <!-- end --> once", file=sys.stderr)
            return 2
        page = between.sub(lambda marks, text=text: f"{marks[1]}{text}\n{marks[2]}", page)
    path.write_text(page)
    return 0
