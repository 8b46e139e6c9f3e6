"""The progress of a batch on standard error: a bar in a terminal, otherwise a line from time to time."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llava_gateway.batch.run import BatchStats

LINE_INTERVAL = 10.0
"""Seconds between two lines if there is no terminal."""


class BatchProgress:
    """Shows the progress within its block."""

    def __init__(self, total: int, already_answered: int) -> None:
        """`total`: all lines of the batch. `already_answered`: lines that earlier runs have answered."""
        self._total, self._already_answered = total, already_answered
        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self._is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total, completed=already_answered, rates="")

    def __enter__(self) -> "BatchProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show_step(self, step: str) -> None:
        """Show the current step before the first line is sent, for example "loading the model"."""
        self._bar.update(self._task, description=step)
        if not self._is_terminal:
            sys.stderr.write(f"{step}\n")

    def begin(self) -> None:
        """Start the clock of the remaining time, when the first line is sent."""
        self._last_line = time.monotonic()
        self._bar.reset(self._task, description="sending", completed=self._already_answered)

    def show_retry(self, reason: str) -> None:
        """Show why a line is sent again."""
        self._bar.update(self._task, description=f"waiting: {escape(reason)}")
        if self._is_line_due():
            sys.stderr.write(f"waiting: {reason}\n")

    def show(self, stats: BatchStats) -> None:
        """Show the counts so far."""
        answered = stats.done + stats.failed
        rate = answered / stats.seconds
        rates = f"{rate:.1f} lines/s, {stats.completion_tokens / stats.seconds:,.0f} tokens/s"
        rates += f", {stats.failed} failed" if stats.failed else ""
        self._bar.update(self._task, description="sending", completed=self._already_answered + answered, rates=rates)
        if self._is_line_due():
            left = (self._total - self._already_answered - answered) / rate
            sys.stderr.write(f"{self._already_answered + answered} of {self._total} lines, {rates}, {left:.0f} s left\n")

    def _is_line_due(self) -> bool:
        if self._is_terminal or time.monotonic() - self._last_line < LINE_INTERVAL:
            return False
        self._last_line = time.monotonic()
        return True
