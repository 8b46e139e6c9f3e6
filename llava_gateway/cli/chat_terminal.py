"""A chat in the terminal: lines are questions, or commands that begin with a slash."""

import json
import shlex
from collections.abc import Callable
from functools import partial

from rich.console import Console

from llava_gateway.cli.chat_conversation import Conversation
from llava_gateway.cli.chat_line import Line
from llava_gateway.cli.chat_stream import Answer, ChatError
from llava_gateway.client.remote import image_part, local_path

HELP = {
    "/image": ("FILE|URL...", "pictures that go with the next question"),
    "/retry": ("", "ask the last question again, in place of its answer"),
    "/system": ("TEXT", "a system message from now on; none without TEXT"),
    "/clear": ("", "begin anew: forget what was said, and the pictures"),
    "/save": ("FILE", "write model and messages as JSON, the pictures in it"),
    "/help": ("", "this list"),
    "/quit": ("", "leave; so do Ctrl-D, and Ctrl-C on an empty line"),
}
HINT = "Ctrl-C stops an answer. A line that begins with a space is never a command."


class Terminal:
    """Reads questions and commands until the user leaves."""

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self._conversation = conversation
        self._console = console
        self._line = Line(tuple(HELP), ("/image", "/save"))
        self._do: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/retry": self._retry,
            "/system": self._system,
            "/clear": self._clear,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> None:
        model, url = self._conversation.fields["model"], str(self._conversation.client.base_url).rstrip("/")
        self._note(f"{model} at {url}. /help lists the commands; Ctrl-D leaves.")
        while (line := self._line.read(self._prompt())) is not None and line != "/quit":
            name, _, rest = line.partition(" ")
            try:
                if not line.startswith("/"):
                    self._answer(partial(self._conversation.ask, line.strip()))
                elif name in self._do:
                    self._do[name](rest.strip())
                else:
                    self._complain(f"There is no {name}; /help lists the commands. Begin the line with a space to send it as a question.")
            except ChatError as error:
                self._complain(str(error))
            except OSError as error:
                self._complain(f"{error.filename or name}: {error.strerror}")

    def _prompt(self) -> str:
        waiting = len(self._conversation.pictures)
        return f"[{waiting} picture{'s' if waiting > 1 else ''}] > " if waiting else "> "

    def _answer(self, ask: Callable[[], Answer | None]) -> None:
        try:
            answer = ask()
        except KeyboardInterrupt:
            self._note("stopped; what came is kept" if self._conversation.answered else "stopped; the question is not kept")
            return
        if answer is None:
            self._complain("There is no question yet.")
        else:
            self._note(answer.summary() or "The answer is empty; question and answer are not kept.")

    def _image(self, sources: str) -> None:
        self._conversation.pictures += [image_part(source) for source in _names(sources)]

    def _retry(self, rest: str) -> None:
        self._answer(self._conversation.retry)

    def _system(self, text: str) -> None:
        self._conversation.system = text
        self._note("The system message is set." if text else "There is no system message now.")

    def _clear(self, rest: str) -> None:
        self._conversation.clear()
        self._note("What was said is forgotten.")

    def _save(self, name: str) -> None:
        for path in map(local_path, _names(name)):
            with path.open("x") as file:
                json.dump({**self._conversation.fields, "messages": self._conversation.messages()}, file, indent=1)
            self._note(f"{path} is written. It can be sent to chat/completions as it is.")

    def _help(self, rest: str) -> None:
        for name, (values, what) in HELP.items():
            self._console.print(f"  {name} {values:{19 - len(name)}} {what}", markup=False)
        self._console.print(f"  {HINT}", markup=False)

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def _complain(self, text: str) -> None:
        self._console.print(text, style="red", markup=False)


def _names(text: str) -> list[str]:
    """Names as a shell takes them apart. Raises ChatError if there is none."""
    try:
        names = shlex.split(text)
    except ValueError as error:
        raise ChatError(f"{error}: put a backslash before spaces and quotes in names.") from error
    if not names:
        raise ChatError("Which one? Give its name after the command.")
    return names
