"""A chat in the terminal: each line is a question, or a command that begins with a slash."""

import json
import shlex
from collections.abc import Callable
from functools import partial

from rich.console import Console

from llava_gateway.cli.chat_conversation import ChatAnswer, ChatError, Conversation
from llava_gateway.cli.line_editor import LineEditor
from llava_gateway.client.remote import image_part, local_path

HELP = {
    "/image": ("FILE|URL...", "send these images with the next question"),
    "/retry": ("", "send the last question again and replace its answer"),
    "/system": ("TEXT", "set the system message; without TEXT, remove it"),
    "/clear": ("", "start again: forget all messages and images"),
    "/save": ("FILE", "write the model, the messages and their images as JSON"),
    "/help": ("", "show this list"),
    "/quit": ("", "leave; Ctrl-D, or Ctrl-C on an empty line, does the same"),
}
HINT = "Ctrl-C stops an answer. A line that begins with a space is always a question."


class Terminal:
    """Reads questions and commands until the user leaves."""

    def __init__(self, conversation: Conversation, console: Console) -> None:
        """`console`: for everything except the answers, which go to standard output."""
        self._conversation = conversation
        self._console = console
        self._editor = LineEditor(tuple(HELP), ("/image", "/save"))
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/retry": self._retry,
            "/system": self._system,
            "/clear": self._clear,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> None:
        """Run the chat. Errors are shown, and the chat goes on."""
        model, url = self._conversation.fields["model"], str(self._conversation.client.base_url).rstrip("/")
        self._show_note(f"{model} at {url}. /help lists the commands; Ctrl-D leaves.")
        while (line := self._editor.read(self._prompt())) is not None and line != "/quit":
            name, _, rest = line.partition(" ")
            try:
                if not line.startswith("/"):
                    self._answer(partial(self._conversation.ask, line.strip()))
                elif name in self._commands:
                    self._commands[name](rest.strip())
                else:
                    self._show_error(f"No command {name}; /help lists them. To send the line as a question, put a space before it.")
            except ChatError as error:
                self._show_error(str(error))
            except OSError as error:
                self._show_error(f"{error.filename or name}: {error.strerror}")

    def _prompt(self) -> str:
        waiting = len(self._conversation.images)
        return f"[{waiting} picture{'s' if waiting > 1 else ''}] > " if waiting else "> "

    def _answer(self, ask: Callable[[], ChatAnswer | None]) -> None:
        try:
            answer = ask()
        except KeyboardInterrupt:
            answered = self._conversation.answered
            self._show_note("stopped; the partial answer is kept" if answered else "stopped; the question is not kept")
            return
        if answer is None:
            self._show_error("There is no question yet.")
        else:
            self._show_note(answer.summary() or "The answer is empty; question and answer are not kept.")

    def _image(self, sources: str) -> None:
        self._conversation.images += [image_part(source) for source in _split_names(sources)]

    def _retry(self, rest: str) -> None:
        self._answer(self._conversation.retry)

    def _system(self, text: str) -> None:
        self._conversation.system = text
        self._show_note("The system message is set." if text else "The system message is removed.")

    def _clear(self, rest: str) -> None:
        self._conversation.clear()
        self._show_note("The conversation is empty.")

    def _save(self, name: str) -> None:
        for path in map(local_path, _split_names(name)):
            with path.open("x") as file:
                json.dump({**self._conversation.fields, "messages": self._conversation.messages()}, file, indent=1)
            self._show_note(f"{path} is written. It is a valid request body for chat/completions.")

    def _help(self, rest: str) -> None:
        for name, (values, meaning) in HELP.items():
            self._console.print(f"  {name} {values:{19 - len(name)}} {meaning}", markup=False)
        self._console.print(f"  {HINT}", markup=False)

    def _show_note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def _show_error(self, text: str) -> None:
        self._console.print(text, style="red", markup=False)


def _split_names(text: str) -> list[str]:
    """Split file names like a shell does. Raises ChatError if there is none."""
    try:
        names = shlex.split(text)
    except ValueError as error:
        raise ChatError(f"{error}: put a backslash before spaces and quotes in names.") from error
    if not names:
        raise ChatError("The name is missing: give it after the command.")
    return names
