"""What a campaign counts: cases by kind, and what must not happen to any."""

import traceback
from dataclasses import dataclass, field

BAD = ("loaded", "changed", "foreign", "tracebacks", "differing", "stray")
HEAD = ("kind", "cases", *BAD)


@dataclass
class Tally:
    """Cases of one kind, how many went wrong in which way, and the first few of those in words."""

    kind: str
    cases: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, how: str, what: str) -> None:
        """One case went wrong."""
        self.wrong[how] = self.wrong.get(how, 0) + 1
        if len(self.examples) < 10:
            self.examples.append(f"{self.kind}: {how}: {what}")

    @property
    def row(self) -> tuple[str, ...]:
        """The line of the table."""
        return self.kind, f"{self.cases:,}", *(str(self.wrong.get(how, 0)) for how in BAD)


def table(tallies: list[Tally]) -> str:
    """All kinds in Markdown, and what went wrong below."""
    rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *(tally.row for tally in tallies)]
    return "\n".join(
        ["| " + " | ".join(row) + " |" for row in rows] + [line for tally in tallies for line in tally.examples]
    )


def told(error: BaseException) -> str:
    """An exception and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:120]!r} at {last.filename.rpartition('/')[2]}:{last.lineno}"
