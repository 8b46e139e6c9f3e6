"""The `llava-gateway` command. Each subcommand is a module with `main(arguments) -> exit status` and with
`make_parser()`, which makes its --help and the shells' completion."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from llava_gateway import __version__

COMMANDS = {
    "serve": "serve a LLaVA over the OpenAI API",
    "chat": "chat about pictures in the terminal, or ask one question",
    "batch": "answer a file of requests, or ask the same about many pictures",
    "bench": "load an OpenAI-compatible server, and see what comes of it",
    "convert": "make an original LLaVA checkpoint one that can be served",
    "keys": "make, list and revoke the keys that requests come with",
    "export-dataset": "make a dataset of the votes that a server has kept",
    "completion": "print a script that completes these commands in a shell",
}

EXAMPLES = """\
examples:
  llava-gateway serve llava-demo         serve the demo model on port 8000
  llava-gateway chat --image photo.jpg   chat with it about a picture
  llava-gateway chat --base-url https://llava.example.com/v1"""
CLOSED_PIPE = 128 + 13
"""What a shell says of a program that SIGPIPE ended."""


def main() -> None:
    """Entry point of the console script."""
    try:
        try:
            status = _run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLOSED_PIPE
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def module_of(command: str) -> ModuleType:
    return importlib.import_module(f"llava_gateway.cli.{command.replace('-', '_')}")


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return int(module_of(name).main(arguments[1:]))
    if name in ("--version", "-V"):
        print(f"llava-gateway {__version__}")
    elif name in ("--help", "-h", "help"):
        _help()
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"did you mean {near[0]!r}?" if near else "llava-gateway --help lists them"
        sys.stderr.write(f"llava-gateway: there is no command {name!r}; {guess}\n")
        return 2
    return 0


def _help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: llava-gateway COMMAND ...\n\nLLaVA behind the OpenAI API, on vLLM.\n\ncommands:")
    for command, what in COMMANDS.items():
        print(f"  {command:{width}}  {what}")
    print(f"\n{EXAMPLES}\n\nllava-gateway COMMAND --help says more; --version says which version this is.")
