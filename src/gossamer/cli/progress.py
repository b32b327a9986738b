"""The progress of a run: nothing, lines of text, or a live bar."""

from __future__ import annotations

from typing import Any

from .console import live


class Silent:
    """The interface of all progress displays; it prints nothing. A context manager around one or several runs."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, label: str, epochs: int, each: int, done: int) -> None:
        """A run begins with ``each`` optimizer steps per epoch; ``done`` of all its steps were made before."""

    def say(self, label: str, sentence: str) -> None:
        """A note on a run, before its first step."""

    def step(self, loss: float) -> None:
        """An optimizer step was made."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch ended with these metrics; epoch 0 is the untrained model."""

    def end(self, label: str, result: dict[str, Any]) -> None:
        """A run is over."""


class Lines(Silent):
    """About ten lines of plain text per run."""

    def begin(self, label: str, epochs: int, each: int, done: int) -> None:
        self.label, self.epochs = label, epochs
        print(f"{label}: {epochs} epochs of {each} steps" + (f", from step {done + 1} on" if done else ""), flush=True)

    def say(self, label: str, sentence: str) -> None:
        print(f"{label}: {sentence}", flush=True)

    def epoch(self, row: dict[str, Any]) -> None:
        n = row["epoch"]
        if n > 0 and n * 10 // self.epochs > (n - 1) * 10 // self.epochs:
            print(
                f"{self.label}: epoch {n}/{self.epochs}  train loss {row['train_loss']:.4f}  {headline(row)}",
                flush=True,
            )

    def end(self, label: str, result: dict[str, Any]) -> None:
        print(f"{label}: {outcome(result)}", flush=True)


class Bars(Silent):
    """A live bar for the current run, one for all runs if there are several, and a line for each finished run."""

    def __init__(self, runs: int):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, TextColumn("{task.fields[state]}"))
        self.all = self.progress.add_task("all runs", total=runs, state="", visible=runs > 1)
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, label: str, epochs: int, each: int, done: int) -> None:
        self.now, self.measured = self.progress.add_task(label, total=epochs * each, completed=done, state=""), ""
        self.tasks[label] = self.now

    def say(self, label: str, sentence: str) -> None:
        self.progress.print(f"{label}: {sentence}", highlight=False, markup=False)

    def step(self, loss: float) -> None:
        self.progress.update(self.now, advance=1, state=f"loss {loss:.4f}  {self.measured}")

    def epoch(self, row: dict[str, Any]) -> None:
        self.measured = headline(row)

    def end(self, label: str, result: dict[str, Any]) -> None:
        if label in self.tasks:
            self.progress.remove_task(self.tasks.pop(label))
        self.progress.print(f"{label}: {outcome(result)}", highlight=False, markup=False)
        self.progress.advance(self.all)


def watch_for(runs: int) -> Silent:
    """The display: Bars on a terminal with rich, else Lines."""
    return Bars(runs) if live() else Lines()


def headline(row: dict[str, Any]) -> str:
    """The accuracy as text."""
    return f"accuracy {100 * row['accuracy']:.2f} %"


def outcome(result: dict[str, Any]) -> str:
    """One line on a finished or diverged run."""
    if result["status"] == "diverged":
        return f"diverged: the loss is {result['loss']} at step {result['step']}"
    flops, seconds = f"{result['flops_ratio']:.4f} of the dense training FLOPs", f"{result['seconds']:.1f} s"
    return f"{headline(result['metrics'])}, {flops}, {seconds}"
