"""`llava-gateway completion bash|zsh|fish`: print a script with which a shell completes commands, flags and their values."""

import argparse
from collections.abc import Sequence

import shtab

from llava_gateway.cli.main import COMMANDS, module_of
from llava_gateway.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")
COMPLETERS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""How a value is completed, by its metavar."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = make_parser().parse_args(arguments)
    script = shtab.complete(_command_parser(), options.shell)
    print(script.replace("complete -o bashdefault -F", "complete -o bashdefault -o filenames -F"))  # lets bash complete below a directory
    return 0


def _command_parser() -> Parser:
    """Return a parser of the whole command line, with all subcommands."""
    parser = Parser(prog="llava-gateway")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers()
    for command, summary in COMMANDS.items():
        commands.add_parser(command, help=summary, parents=[module_of(command).make_parser()], add_help=False)
    _mark_paths(parser)
    return parser


def _mark_paths(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which options and arguments are paths."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _mark_paths(subparser)
        for metavar in COMPLETERS.keys() & set(str(action.metavar).split("|")):
            action.complete = COMPLETERS[metavar]  # type: ignore[attr-defined]


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway completion",
        description="Print a script with which a shell completes llava-gateway's commands and flags.",
        epilog="save the script as:\n"
        "  bash  a file that ~/.bashrc sources\n"
        "  zsh   _llava-gateway in a directory of $fpath\n"
        "  fish  ~/.config/fish/completions/llava-gateway.fish\n\n"
        "example:\n"
        "  llava-gateway completion bash > ~/.llava-gateway.bash\n"
        "  echo source ~/.llava-gateway.bash >> ~/.bashrc",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that will run the script")
    return parser
