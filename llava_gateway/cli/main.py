"""The entry point of the `llava-gateway` command.

Each subcommand is a module with two functions: `main(arguments)`, which returns the exit status, and `make_parser()`, for --help and for
the completion scripts of shells. A module is imported only when its command runs, so --help is fast.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from llava_gateway import __version__

COMMANDS = {
    "serve": "serve a LLaVA model over the OpenAI API",
    "chat": "chat about images in the terminal, or ask one question",
    "batch": "answer a file of requests, or send one prompt with many images",
    "bench": "measure an OpenAI-compatible server under load",
    "convert": "convert an original LLaVA checkpoint for serving",
    "keys": "make, list and revoke the API keys of clients",
    "export-dataset": "export the votes that a server has collected as a dataset",
    "completion": "print a completion script for a shell",
}

EXAMPLES = """\
examples:
  llava-gateway serve llava-demo         serve the demo model on port 8000
  llava-gateway chat --image photo.jpg   chat with it about an image
  llava-gateway chat --base-url https://llava.example.com/v1"""
CLOSED_PIPE = 128 + 13
"""The exit status that shells report for a program that SIGPIPE has ended."""


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    try:
        try:
            status = _run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLOSED_PIPE
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def module_of(command: str) -> ModuleType:
    """Import and return the module of a command."""
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
        sys.stderr.write(f"llava-gateway: unknown command {name!r}; {guess}\n")
        return 2
    return 0


def _help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: llava-gateway COMMAND ...\n\nLLaVA behind the OpenAI API, on vLLM.\n\ncommands:")
    for command, summary in COMMANDS.items():
        print(f"  {command:{width}}  {summary}")
    print(f"\n{EXAMPLES}\n\nllava-gateway COMMAND --help describes a command; --version prints the version.")
