# pyright: strict, reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
"""The progress of a fit: nothing, a bar on a terminal with rich, or ten lines and the last step."""

import sys
from importlib.util import find_spec
from typing import Any


class Progress:
    """Reports the progress of a fit. It is a context manager, and is called with (step, value).

    Args:
        estimator: its ``verbose`` turns the report on.
        total: number of steps.
        what: name of the value.
    """

    def __init__(self, estimator: Any, total: int, what: str = "loss"):
        self.name, self.total, self.what = type(estimator).__name__, total, what
        self.verbose, self.bar, self.task = estimator.verbose, None, None
        self.last, self.pending = 0, ""

    def __enter__(self) -> "Progress":
        if self.verbose and sys.stdout.isatty() and find_spec("rich") is not None:
            from rich.progress import Progress as Bar

            self.bar = Bar()
            self.task = self.bar.add_task(self.name, total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.verbose and self.pending:
            print(self.pending, flush=True)

    def __call__(self, t: int, value: float) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=t, description=f"{self.name} {self.what} {value:.4g}")
        elif self.verbose:
            self.pending = f"{self.name}: {t}/{self.total}  {self.what} {value:.4g}"
            if t * 10 // self.total > self.last:
                self.last = t * 10 // self.total
                print(self.pending, flush=True)
                self.pending = ""
