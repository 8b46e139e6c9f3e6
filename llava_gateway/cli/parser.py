"""The look of every command's --help, and of its complaints."""

import argparse
import shutil
import textwrap
from typing import Any, NoReturn

WIDEST = 110
"""Characters of a line; longer ones are hard to read, however wide the terminal."""


class Parser(argparse.ArgumentParser):
    """Complains in one line, with exit status 2; never breaks a word at its hyphens, and leaves paragraphs of several lines as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns - 2, WIDEST))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n" in part else "\n".join(self._split_lines(part, width)) for part in paragraphs)
