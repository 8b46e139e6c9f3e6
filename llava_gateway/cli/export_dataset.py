"""`llava-gateway export-dataset DIR OUT`: votes that were kept with --feedback-dir, as a dataset to train LLaVA with."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from llava_gateway.cli.parser import Parser
from llava_gateway.feedback.export import Choice, ExportError, export, summary
from llava_gateway.feedback.record import VoteName


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 if nothing is exported, 2 if an argument is wrong."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    choice = Choice(given.votes, given.models, given.val_fraction, given.seed, given.several_pictures)
    try:
        print(summary(export(given.source, given.target, choice, overwrite=given.overwrite)))
    except ExportError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: {error.filename or given.target}: {error.strerror}\n")
        return 1
    return 0


def make_parser() -> Parser:
    parser = Parser(
        prog="llava-gateway export-dataset",
        description="Make a dataset of the votes that a server has kept: OUT/images, OUT/annotations_train.json and "
        "OUT/annotations_val.json, as LLaVA's trainer (with --image_folder OUT) and SambaStudio take it.",
        epilog="examples:\n  llava-gateway serve --feedback-dir votes\n  llava-gateway export-dataset votes dataset --val-fraction 0.2",
    )
    parser.add_argument("source", type=Path, metavar="DIR", help="the server's --feedback-dir; it may be running")
    parser.add_argument("target", type=Path, metavar="OUT", help="a directory that is empty or not there yet")
    parser.add_argument("--votes", type=_votes, default="up", metavar="A,B", help="which to take: up, down, flag (default: up)")
    parser.add_argument("--models", type=_names, default="", metavar="A,B", help="whose answers to take (default: all)")
    parser.add_argument(
        "--val-fraction", type=_fraction, default=0.1, metavar="F", help="how many are for validation, 0 to 1 (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one chooses others for validation (default: 0)")
    parser.add_argument("--several-pictures", action="store_true", help="also chats with several pictures, `image` being a list")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _votes(text: str) -> frozenset[str]:
    votes = _names(text)
    if not votes or not votes <= set(get_args(VoteName)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(get_args(VoteName))}")
    return votes


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return fraction
