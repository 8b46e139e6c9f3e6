"""`llava-gateway completion bash|zsh|fish`: the script by which a shell completes commands, flags and their values."""

import argparse
from collections.abc import Sequence

import shtab

from llava_gateway.cli.main import COMMANDS, module_of
from llava_gateway.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")
PLACES = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""What stands for a value in --help says whether paths complete it."""


def main(arguments: Sequence[str]) -> int:
    given = make_parser().parse_args(arguments)
    script = shtab.complete(_everything(), given.shell)
    print(script.replace("complete -o bashdefault -F", "complete -o bashdefault -o filenames -F"))  # bash then goes on below a directory
    return 0


def _everything() -> Parser:
    parser = Parser(prog="llava-gateway")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers()
    for command, what in COMMANDS.items():
        parser_of = module_of(command).make_parser()
        commands.add_parser(command, help=what, parents=[parser_of], add_help=False)
    _complete_paths(parser)
    return parser


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _complete_paths(subparser)
        for place in PLACES.keys() & set(str(action.metavar).split("|")):
            action.complete = PLACES[place]  # type: ignore[attr-defined]


def make_parser() -> Parser:
    parser = Parser(
        prog="llava-gateway completion",
        description="Print the script that completes llava-gateway's commands and flags in a shell.",
        epilog="where it goes:\n"
        "  bash  a file that ~/.bashrc sources\n"
        "  zsh   _llava-gateway in a directory of $fpath\n"
        "  fish  ~/.config/fish/completions/llava-gateway.fish\n\n"
        "example:\n"
        "  llava-gateway completion bash > ~/.llava-gateway.bash\n"
        "  echo source ~/.llava-gateway.bash >> ~/.bashrc",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that it is for")
    return parser
