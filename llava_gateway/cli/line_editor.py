"""Input lines of a terminal, with editing, completion and a history that is kept. Uses readline if Python has it."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

try:
    import readline
except ImportError:  # some builds of Python have no readline
    readline = None  # type: ignore[assignment]

HISTORY_LINES = 1000
LAST_WORD = re.compile(r"(?:\\.|[^\s\\])*$")


class LineEditor:
    """Reads lines from the user."""

    def __init__(self, commands: Sequence[str], path_commands: Sequence[str]) -> None:
        """`commands`: completed at the beginning of a line. `path_commands`: the commands whose arguments are paths."""
        self._commands = commands
        self._path_commands = path_commands
        self._matches: list[str] = []
        self._history: Path | None = None
        if readline:
            readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text of several lines is one question
            readline.set_completer_delims(" \t\n")
            readline.set_completer(self._complete)
            readline.set_history_length(HISTORY_LINES)
            with contextlib.suppress(OSError, RuntimeError):  # without a history file, the chat still works
                self._history = _history_file()
                readline.read_history_file(self._history)

    def read(self, prompt: str) -> str | None:
        """Return a line that is not blank, without white space at its end.

        Returns None if the user leaves: with Ctrl-D, or with Ctrl-C on an empty line.
        """
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
            self._save_history(before)
            if line.strip():
                return line.rstrip()

    def _save_history(self, before: int) -> None:
        """Append the new lines to the history file at once, so that concurrent chats do not overwrite each other's lines."""
        if self._history and (new := readline.get_current_history_length() - before):
            with contextlib.suppress(OSError):
                readline.append_history_file(new, self._history)

    def _complete(self, text: str, state: int) -> str | None:
        """Return the candidate number `state` for the word `text`, as readline asks for it."""
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            self._matches = self._candidates(line, text)
        return self._matches[state] if state < len(self._matches) else None

    def _candidates(self, line: str, text: str) -> list[str]:
        command, space, _ = line.partition(" ")
        if not space:
            return [f"{known} " for known in self._commands if known.startswith(command)]
        if command not in self._path_commands:
            return []
        match = LAST_WORD.search(line)
        word = match.group() if match else ""
        return [path[len(word) - len(text) :] for path in matching_paths(word)]


def matching_paths(word: str) -> list[str]:
    """Return the paths that begin with `word`. A directory's path ends with a slash.

    In `word` and in the result, spaces and quotes are escaped by backslashes.
    """
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
    """Return the history file, which only its owner can read. Raises OSError, or RuntimeError if there is no home directory."""
    state = os.environ.get("XDG_STATE_HOME")
    folder = (Path(state) if state else Path.home() / ".local" / "state") / "llava-gateway"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "chat_history"
    file.touch(mode=0o600)
    return file
