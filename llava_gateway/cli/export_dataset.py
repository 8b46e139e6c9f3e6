"""`llava-gateway export-dataset DIR OUT`: export the votes in a --feedback-dir as a dataset to train LLaVA with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from llava_gateway.cli.parser import Parser, comma_separated
from llava_gateway.feedback.export import Choice, ExportError, export, summary
from llava_gateway.feedback.record import VoteName


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. 1: nothing was exported. 2: an argument is wrong."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    choice = Choice(options.votes, options.models, options.val_fraction, options.seed, options.several_pictures)
    try:
        print(summary(export(options.source, options.target, choice, overwrite=options.overwrite)))
    except ExportError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: {error.filename or options.target}: {error.strerror}\n")
        return 1
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway export-dataset",
        description="Export the votes that a server has collected as a dataset: OUT/images, OUT/annotations_train.json and "
        "OUT/annotations_val.json. LLaVA's trainer (with --image_folder OUT/images) and SambaStudio read this format.",
        epilog="examples:\n  llava-gateway serve --feedback-dir votes\n  llava-gateway export-dataset votes dataset --val-fraction 0.2",
    )
    parser.add_argument("source", type=Path, metavar="DIR", help="the server's --feedback-dir; the server may be running")
    parser.add_argument("target", type=Path, metavar="OUT", help="the dataset: a directory that is empty or does not exist yet")
    parser.add_argument("--votes", type=_votes, default="up", metavar="A,B", help="export these votes: up, down, flag (default: up)")
    parser.add_argument("--models", type=comma_separated, default="", metavar="A,B", help="export answers of these models (default: all)")
    parser.add_argument(
        "--val-fraction", type=_fraction, default=0.1, metavar="F", help="share of samples for validation, 0 to 1 (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random choice for validation (default: 0)")
    parser.add_argument("--several-pictures", action="store_true", help="also export chats with several images; `image` is then a list")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def _votes(value: str) -> frozenset[str]:
    """Return an option's value as a set of votes. Raises ArgumentTypeError."""
    votes = comma_separated(value)
    if not votes or not votes <= set(get_args(VoteName)):
        raise argparse.ArgumentTypeError(f"{value!r} is not a list of votes; the votes are {', '.join(get_args(VoteName))}")
    return votes


def _fraction(value: str) -> float:
    """Return an option's value as a number from 0 to 1. Raises ArgumentTypeError."""
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 0 to 1")
    return fraction
