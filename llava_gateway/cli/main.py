"""The entry point of the `llava-gateway` command.

Each subcommand is a module with two functions: `main(arguments)`, which returns the exit status, and `make_parser()`, for --help and for
the completion scripts of shells. A module is imported only when its command runs, so --help is fast.
"""

import contextlib
import difflib
import importlib
import io
import os
import sys
import tomllib
from collections.abc import Sequence
from types import ModuleType

from llava_gateway import __version__

COMMANDS = {
    "serve": "serve a LLaVA model over the OpenAI API",
    "chat": "chat about images in the terminal, or ask one question",
    "batch": "answer a file of requests, or send one prompt with many images",
    "bench": "measure an OpenAI-compatible server under load",
    "convert": "convert an original LLaVA checkpoint for serving",
    "models": "list the models that this machine can serve",
    "doctor": "check this machine and its packages, and say what to do",
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
    """Run the command line of this process, and exit with its status.

    A fault of the environment is reported in one line: a full disk, a closed standard output, an encoding, a missing package.
    """
    _prepare_streams()
    try:
        try:
            status = _run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has closed the pipe
        status = CLOSED_PIPE
        _discard_output()
    except (OSError, UnicodeError, ImportError, tomllib.TOMLDecodeError) as error:
        status = 1
        _discard_output()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"llava-gateway: {_reason(error)}\n")
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _prepare_streams() -> None:
    """Replace closed standard streams by /dev/null, and have the others accept every text.

    The next file or socket would otherwise get the number of a closed stream, and the output of vLLM would go there.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout):  # a locale may have few characters; standard error escapes the others already
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Send the rest of the output to /dev/null, because Python writes it when the process ends, and would report another error."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
            continue
        os.dup2(null, stream.fileno())
    os.close(null)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
    return f"llava-gateway.toml: {error}" if isinstance(error, tomllib.TOMLDecodeError) else str(error)


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
