"""`llava-gateway convert SRC DST`: an original LLaVA checkpoint in the layout that is served."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llava_gateway.cli.parser import Parser

INTERRUPTED = 130
LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 if there is no result, 2 if an argument is wrong, 130 after a Ctrl-C."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    try:
        from llava_gateway.convert.run import Job, convert
        from llava_gateway.convert.source import ConvertError
    except ImportError as error:
        sys.stderr.write(f"{parser.prog}: {error}; install the extra 'cpu' or 'cuda'\n")
        return 1
    job = Job(given.source, given.target, given.max_shard_mb << 20, given.base, given.vision_tower)
    try:
        with _Shown() as shown:
            convert(job, shown.show)
    except ConvertError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: {error.filename or given.target}: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command goes on from here\n")
        return INTERRUPTED
    print(f"{given.target} is whole: configuration, tokenizer and processor load, and every weight has its place. Serve it with\n")
    print(f"  llava-gateway serve {shlex.quote(str(given.target))}")
    return 0


class _Shown:
    """How far it is: a bar in a terminal, and a line from time to time elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        self._written = time.monotonic()
        columns = (TextColumn("writing weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn(elapsed_when_finished=True))
        self._bar = Progress(*columns, console=console, disable=not self._is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "_Shown":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        if not self._is_terminal and time.monotonic() - self._written >= LINE_INTERVAL:
            self._written = time.monotonic()
            sys.stderr.write(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB written\n")


def make_parser() -> Parser:
    parser = Parser(
        prog="llava-gateway convert",
        description="Convert an original LLaVA checkpoint (v1 or v1.5: whole, a LoRA with non_lora_trainables.bin, or mm_projector.bin "
        "alone) to the Hugging Face layout, which is served. A run that was ended goes on when the same command is given again.",
        epilog="examples:\n"
        "  llava-gateway convert llava-v1.5-7b llava-v1.5-7b-hf\n"
        "  llava-gateway convert my-lora my-llava-hf --base lmsys/vicuna-7b-v1.5\n"
        "  llava-gateway serve llava-v1.5-7b-hf",
    )
    parser.add_argument("source", metavar="SRC", help="a directory or a Hugging Face id")
    parser.add_argument("target", type=Path, metavar="DST", help="a directory that is not there yet")
    parser.add_argument("--base", metavar="BASE", help="what a LoRA or a projector was trained on: a directory or a Hugging Face id")
    parser.add_argument("--vision-tower", metavar="CLIP", help="a directory or a Hugging Face id (default: what config.json names)")
    parser.add_argument(
        "--max-shard-mb",
        type=_positive,
        default=2048,
        metavar="N",
        help="largest file of weights, in MiB; memory is needed for about one (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
