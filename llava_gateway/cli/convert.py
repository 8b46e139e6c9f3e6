"""`llava-gateway convert SRC DST`: convert an original LLaVA checkpoint to the layout that is served."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llava_gateway.cli.parser import Parser, positive_int
from llava_gateway.prompts.templates import BUILT_IN

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT."""
LINE_INTERVAL = 10.0
"""Seconds between two lines if there is no terminal."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. 1: there is no result. 2: an argument is wrong. 130: Ctrl-C."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        from llava_gateway.convert.run import Job, convert
        from llava_gateway.convert.source import ConvertError
    except ImportError as error:
        sys.stderr.write(f"{parser.prog}: {error}; install the extra 'cpu' or 'cuda'\n")
        return 1
    job = Job(
        source=options.source,
        target=options.target,
        shard_bytes=options.max_shard_mb << 20,
        base=options.base,
        vision_tower=options.vision_tower,
        template=options.template,
        adapter=options.adapter,
    )
    try:
        with _ConvertProgress() as progress:
            result = convert(job, progress.show)
    except ConvertError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: {error.filename or options.target}: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command goes on from here\n")
        return INTERRUPTED
    print(f"{options.target} is complete: configuration, tokenizer and processor load, and every weight fits the model.")
    print(f"Its chat template is {result.template}. Serve it with\n")
    print(f"  {shlex.join(['llava-gateway', 'serve', str(options.target), *result.serve_flags])}")
    return 0


class _ConvertProgress:
    """The progress on standard error: a bar in a terminal, otherwise a line from time to time."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        self._last_line = time.monotonic()
        columns = (TextColumn("writing weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn(elapsed_when_finished=True))
        self._bar = Progress(*columns, console=console, disable=not self._is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "_ConvertProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show the bytes that are written, of all bytes."""
        self._bar.update(self._task, completed=done, total=total)
        if not self._is_terminal and time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            sys.stderr.write(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB written\n")


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway convert",
        description="Convert an original LLaVA checkpoint to the Hugging Face layout, which can be served. The checkpoint is of v0 to "
        "v1.6, on LLaMA, Mistral or Yi: a complete model, a delta, a LoRA with non_lora_trainables.bin, or only mm_projector.bin. If a "
        "run was interrupted, the same command resumes it.",
        epilog="examples:\n"
        "  llava-gateway convert llava-v1.5-7b llava-v1.5-7b-hf\n"
        "  llava-gateway convert my-lora my-llava-hf --base lmsys/vicuna-7b-v1.5\n"
        "  llava-gateway convert my-lora my-base-hf --base lmsys/vicuna-7b-v1.5 --adapter my-adapter\n"
        "  llava-gateway convert LLaVA-7b-delta-v0 llava-7b-v0-hf --base huggyllama/llama-7b\n"
        "  llava-gateway serve llava-v1.5-7b-hf",
    )
    parser.add_argument("source", metavar="SRC", help="the original checkpoint: a directory or a Hugging Face id")
    parser.add_argument("target", type=Path, metavar="DST", help="the result: a directory that does not exist yet")
    parser.add_argument("--base", metavar="BASE", help="the base model of a LoRA, a projector or a delta: a directory or a Hugging Face id")
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="write a LoRA to this new directory, to be served as an adapter, and its base model with the tuned projector to DST (default: "
        "both are merged)",
    )
    parser.add_argument(
        "--template", choices=BUILT_IN, metavar="NAME", help="the built-in chat template of the training (default: as the checkpoint says)"
    )
    parser.add_argument("--vision-tower", metavar="CLIP", help="a directory or a Hugging Face id (default: the one in config.json)")
    parser.add_argument(
        "--max-shard-mb",
        type=positive_int,
        default=2048,
        metavar="N",
        help="maximum size of a weights file in MiB; about one file must fit in memory (default: %(default)s)",
    )
    return parser
