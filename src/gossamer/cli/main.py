"""The ``gossamer`` command. Importing it needs only torch. A command checks its extra packages when it runs.

Exit codes: 0 done, 1 a run diverged, 2 wrong use or a missing package or file, 130 interrupted (the state is saved).
"""

import sys
from collections.abc import Callable, Sequence
from inspect import getdoc

from .. import __version__
from .._errors import UsageError, nearest
from . import extras

LONGEST, NESTED = 4000, 40  # letters and brackets of an argument
USAGE = """usage: gossamer COMMAND ...

Sparse training from the first step to the last.

  run [CONFIG.yaml] [--key value ...]   train one configuration; by default the digits data set
                                        at 95 % zeros, with CSST, dense and static random
  sweep FILE.yaml [--key value ...]     train all unfinished configurations and seeds of a file,
                                        and print the table
  report DIR                            print the table of a folder of runs again
  recover phase|planted|inr|mnist       compressed sensing: phase diagrams, planted networks,
                                        images, MNIST; tables and pictures
  doctor                                show what this machine has: kernels, threads, GPU, extras

  gossamer COMMAND --help               show the options of a command, their defaults, an example
  gossamer --version                    show the version

example: gossamer run --density 0.02 --method rigl
"""
EXAMPLES = {
    "report": "gossamer report runs/fashion",
    "recover phase": "gossamer recover phase --solver niht --d 200 --trials 10",
    "recover planted": "gossamer recover planted --methods '[iht, imp]'",
    "recover inr": "gossamer recover inr --image digit",
    "recover mnist": "gossamer recover mnist --digits 01 --nonzeros '[200]'",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. A UsageError is printed as a message on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        for word in argv:
            check_word(word)
        return dispatch(argv)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stderr.close()
        return 0
    except (OSError, UnicodeError) as error:
        remedy = "check that the file or folder can be read and written, and is of the right kind"
        said = str(error) if len(str(error)) <= 400 else f"{str(error)[:400]}..."
        print(f"gossamer: {said}\n  To fix it: {remedy}", file=sys.stderr)
        return 2
    except (MemoryError, RecursionError) as error:
        what = (
            "the command needs more memory than is available"
            if isinstance(error, MemoryError)
            else "an argument or a file is nested too deeply"
        )
        print(f"gossamer: {what}\n  To fix it: smaller settings", file=sys.stderr)
        return 2


def check_word(word: str) -> None:
    """Checks the form of an argument. Raises UsageError on control characters, excessive length or nesting."""
    strange = next((c for c in word if ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000), None)
    if strange is not None:
        raise UsageError("gossamer", "an argument must be UTF-8 text without control characters", got=word[:60])
    if len(word) > LONGEST:
        raise UsageError(
            "gossamer", f"an argument has at most {LONGEST:,} letters", got=len(word), remedy="use a CONFIG.yaml"
        )
    if sum(map(word.count, "[{")) > NESTED:
        raise UsageError(
            "gossamer", f"an argument has at most {NESTED} brackets", got=word[:60], remedy="use a CONFIG.yaml"
        )


def dispatch(argv: list[str]) -> int:
    """Runs one command. Raises UsageError."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    command, rest = argv[0], argv[1:]
    if command in ("--version", "version"):
        print(f"gossamer {__version__}")
        return 0
    if command not in COMMANDS:
        raise UsageError(
            "gossamer",
            f"unknown command {command!r}{nearest(command, COMMANDS)}",
            remedy="gossamer --help lists the commands",
        )
    if command != "doctor":
        extras.require("run", f"gossamer {command}")
    return COMMANDS[command](rest)


def _run(argv: list[str]) -> int:
    from .job import job

    return job(argv)


def _sweep(argv: list[str]) -> int:
    from .sweep import command

    command(argv)
    return 0


def _report(argv: list[str]) -> int:
    from .report import report

    return _call("report", report, argv)


def _recover(argv: list[str]) -> int:
    from .recover import COMMANDS as experiments

    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: gossamer recover EXPERIMENT ...\n\n  "
            + "\n  ".join(f"{name:9} {_first_line(f)}" for name, f in experiments.items())
            + f"\n\nexample: {EXAMPLES['recover phase']}"
        )
        return 0
    if argv[0] not in experiments:
        what = f"unknown experiment {argv[0]!r}{nearest(argv[0], experiments)}"
        raise UsageError("gossamer recover", what, remedy=f"one of {', '.join(experiments)}")
    return _call(f"recover {argv[0]}", experiments[argv[0]], argv[1:])


def _first_line(command: Callable[..., None]) -> str:
    return (getdoc(command) or "").partition("\n")[0]


def _call(name: str, command: Callable[..., None], argv: list[str]) -> int:
    """Calls a command with options parsed from ``argv``; the command's signature declares the options."""
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    from .config import expected
    from .console import help_format

    who, description = f"gossamer {name}", (getdoc(command) or "").partition("Args:")[0]
    description = f"{description.strip()}\n\nexample: {EXAMPLES[name]}"
    form = {"description": description, "formatter_class": help_format()}
    parser = ArgumentParser(prog=who, **form, exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(command, as_group=False, as_positional=True)
    known = [option for action in parser._actions for option in action.option_strings]
    for word in argv:
        if word.startswith("-") and word.partition("=")[0] not in known:
            raise UsageError(
                who, f"unknown option {word}{nearest(word, known)}", remedy=f"{who} --help lists the options"
            )
    try:
        given = parser.parse_args(argv)
    except (ArgumentError, OverflowError) as error:
        raise UsageError(who, expected(str(error))) from error
    command(**vars(given))
    return 0


def _doctor(argv: list[str]) -> int:
    from .doctor import doctor

    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError("gossamer doctor", "there are no options", got=argv[0], remedy="run it without arguments")
    if argv:
        print(
            "usage: gossamer doctor\n\nShow what this machine has: kernels, threads, GPU, extras. No options.\n\n"
            "example: gossamer doctor"
        )
        return 0
    return doctor()


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "sweep": _sweep,
    "report": _report,
    "recover": _recover,
    "doctor": _doctor,
}
