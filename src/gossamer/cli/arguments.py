# pyright: strict
"""The arguments of ``gossamer run`` and ``gossamer sweep``: one file, and ``--key value`` for any setting."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from .._errors import UsageError
from .config import PATHS, schema
from .config import Value as Value
from .record import Config

SWITCHES = ("help", "print_config", *(key for key, value in vars(Config).items() if isinstance(value, bool)))


class Arguments(NamedTuple):
    """The parsed command line."""

    file: Path | None
    settings: dict[str, str]  # --key value; keys contain dots, as in method.every
    options: dict[str, str]  # options of the command itself

    def says(self, option: str) -> bool:
        """Whether a switch of the command is on."""
        return self.options.get(option, "false").lower() == "true"


def split(who: str, argv: Sequence[str], options: Collection[str], switches: Collection[str] = ()) -> Arguments:
    """Splits the arguments into the file, the settings and the command's options.

    Args:
        options: names of the command's options.
        switches: names of the options that need no value.

    Raises: UsageError if a value is missing, a switch is not a bool, or there are several files.
    """
    files: list[str] = []
    given: dict[str, str] = {}
    waiting = ["--help" if word == "-h" else word for word in argv]
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            files.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        follows = bool(waiting) and not waiting[0].startswith("--")
        if not equals and key in (*SWITCHES, *switches) and not (follows and waiting[0].lower() in ("true", "false")):
            value = "true"
        elif not equals and not follows:
            if key not in options and key not in PATHS:
                schema({key: Value("", who)})  # report a misspelt key before a missing value
            raise UsageError(who, f"--{key} needs a value")
        elif not equals:
            value = waiting.pop(0)
        given[key] = value
    if len(files) > 1:
        raise UsageError(who, f"one CONFIG.yaml at most: {', '.join(files)}", remedy="write settings as --key value")
    own = {key: given.pop(key) for key in [*given] if key in options}
    for key in switches:
        if own.get(key, "false").lower() not in ("true", "false"):
            raise UsageError(who, f"--{key} must be true or false", got=own[key])
    return Arguments(Path(files[0]) if files else None, given, own)
