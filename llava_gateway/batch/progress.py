"""What a run says of itself meanwhile: a bar in a terminal, and a line from time to time elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from llava_gateway.batch.run import Tally

LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """A context. `total` lines in all, of which `before` were answered by earlier runs."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before = total, before
        self._written = time.monotonic()
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self._is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total, completed=before, rates="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """What is going on before the first line is asked."""
        self._bar.update(self._task, description=what)
        if not self._is_terminal:
            sys.stderr.write(f"{what}\n")

    def begin(self) -> None:
        """The time left counts from here."""
        self._written = time.monotonic()
        self._bar.reset(self._task, description="asking", completed=self._before)

    def trouble(self, why: str) -> None:
        """Why a line is being tried again."""
        self._bar.update(self._task, description=f"waiting, since {escape(why)}")
        if self._is_time_for_a_line():
            sys.stderr.write(f"waiting, since {why}\n")

    def show(self, tally: Tally) -> None:
        answered = tally.done + tally.failed
        rate = answered / tally.seconds
        rates = f"{rate:.1f} lines/s, {tally.completion_tokens / tally.seconds:,.0f} tokens/s"
        rates += f", {tally.failed} failed" if tally.failed else ""
        self._bar.update(self._task, description="asking", completed=self._before + answered, rates=rates)
        if self._is_time_for_a_line():
            left = (self._total - self._before - answered) / rate
            sys.stderr.write(f"{self._before + answered} of {self._total} lines, {rates}, {left:.0f} s left\n")

    def _is_time_for_a_line(self) -> bool:
        if self._is_terminal or time.monotonic() - self._written < LINE_INTERVAL:
            return False
        self._written = time.monotonic()
        return True
