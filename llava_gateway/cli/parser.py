"""The argument parser of all commands: the layout of --help, the format of error messages, and types of options."""

import argparse
import shutil
import sys
import textwrap
from typing import Any, NoReturn

MAX_WIDTH = 110
"""Characters of a line of --help. Longer lines are hard to read, even in a wide terminal."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, with exit status 2. Its --help does not break words at hyphens, and keeps paragraphs of several lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write --help or an error. argparse itself ignores a full disk."""
        if message and (file := file or sys.stderr):
            file.write(message)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns - 2, MAX_WIDTH))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n" in part else "\n".join(self._split_lines(part, width)) for part in paragraphs)


def positive_int(value: str) -> int:
    """Return an option's value as a whole number above 0. Raises ArgumentTypeError."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number above 0")
    return number


def comma_separated(value: str) -> frozenset[str]:
    """Return an option's value as a set of names."""
    return frozenset(name.strip() for name in value.split(",") if name.strip())
