"""The line that a user types: editing, completion and a history that is kept, by readline where Python has it."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

try:
    import readline
except ImportError:  # how Python was built decides that
    readline = None  # type: ignore[assignment]

KEPT = 1000
"""Lines of history."""
LAST_WORD = re.compile(r"(?:\\.|[^\s\\])*$")


class Line:
    """Reads lines. `commands` begin a line, and are completed there; `with_paths` are those that paths follow."""

    def __init__(self, commands: Sequence[str], with_paths: Sequence[str]) -> None:
        self._commands = commands
        self._with_paths = with_paths
        self._matches: list[str] = []
        self._history: Path | None = None
        if readline:
            readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")  # what is pasted is one question, however many lines it has
            readline.set_completer_delims(" \t\n")
            readline.set_completer(self._complete)
            readline.set_history_length(KEPT)
            with contextlib.suppress(OSError, RuntimeError):  # rather a chat without a history than none
                self._history = _history_file()
                readline.read_history_file(self._history)

    def read(self, prompt: str) -> str | None:
        """A line that is not blank, without white space at its end; None if the user has had enough: Ctrl-D, or Ctrl-C on an empty line."""
        while True:
            before = readline.get_current_history_length() if readline else 0
            try:
                line = input(prompt)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
                if not readline or not readline.get_line_buffer():
                    return None
                continue
            self._keep(before)
            if line.strip():
                return line.rstrip()

    def _keep(self, before: int) -> None:
        """Add what was typed to the file at once: chats at the same time do not overwrite each other's."""
        if self._history and (new := readline.get_current_history_length() - before):
            with contextlib.suppress(OSError):
                readline.append_history_file(new, self._history)

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            self._matches = self._candidates(line, text)
        return self._matches[state] if state < len(self._matches) else None

    def _candidates(self, line: str, text: str) -> list[str]:
        command, space, _ = line.partition(" ")
        if not space:
            return [f"{known} " for known in self._commands if known.startswith(command)]
        if command not in self._with_paths:
            return []
        found = LAST_WORD.search(line)
        word = found.group() if found else ""
        return [path[len(word) - len(text) :] for path in paths(word)]


def paths(word: str) -> list[str]:
    """The paths that begin as `word` does, spaces and quotes escaped by backslashes in both; a directory's ends with a slash."""
    start = re.sub(r"\\(.)", r"\1", word)
    stem = start.rpartition("/")[2]
    head = start[: len(start) - len(stem)]
    found = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(Path(head or ".").expanduser().iterdir()):
            if path.name.startswith(stem) and (stem or not path.name.startswith(".")):
                found.append(re.sub(r"([\s\\'\"])", r"\\\1", head + path.name) + "/" * path.is_dir())
    return found


def _history_file() -> Path:
    """Which no other user may read. Raises OSError, or RuntimeError if there is no home directory."""
    state = os.environ.get("XDG_STATE_HOME")
    folder = (Path(state) if state else Path.home() / ".local" / "state") / "llava-gateway"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "chat_history"
    file.touch(mode=0o600)
    return file
