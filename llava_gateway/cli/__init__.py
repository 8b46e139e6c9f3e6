"""The `llava-gateway` command. Each subcommand is a module with `main(arguments) -> exit status`."""

import importlib
import sys

from llava_gateway.version import __version__

COMMANDS = {
    "serve": "serve a LLaVA over the OpenAI API",
    "keys": "make, list and revoke the keys that requests come with",
    "bench": "load an OpenAI-compatible server, and see what comes of it",
}


def main() -> None:
    """Entry point of the console script."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        sys.exit(importlib.import_module(f"llava_gateway.cli.{name}").main(arguments))
    if name in ("--version", "-V"):
        print(f"llava-gateway {__version__}")
    elif name in ("--help", "-h", "help"):
        print("usage: llava-gateway COMMAND ...\n")
        for command, what in COMMANDS.items():
            print(f"  {command:8} {what}")
        print("\nllava-gateway COMMAND --help says more.")
    else:
        sys.exit(f"llava-gateway: there is no command {name!r}; llava-gateway --help lists them")
