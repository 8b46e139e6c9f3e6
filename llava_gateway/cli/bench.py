"""`llava-gateway bench URL`: put load on an OpenAI-compatible server and print its rates and latencies."""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llava_gateway.cli.parser import Parser
from llava_gateway.client.remote import base_url
from llava_gateway.loadtest.bodies import chat_bodies
from llava_gateway.loadtest.client import LoadTarget, Outcome
from llava_gateway.loadtest.run import LoadResult, run_load_test

PATH = "/chat/completions"


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. 1: a request failed. 2: the server does not list its models."""
    options = make_parser().parse_args(arguments)
    try:
        target = LoadTarget(base_url(options.url), options.key)
        model = options.model or _first_model(target)
    except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
        sys.stderr.write(f"llava-gateway bench: {options.url} does not list its models ({error}); is it an OpenAI-compatible server?\n")
        return 2
    console = Console(stderr=True)
    results = [_measure(target, model, options, concurrency, console) for concurrency in options.concurrency]
    print(f"{model} at {options.url}; times in milliseconds")
    Console().print(_table(results))
    if options.json:
        options.json.write_text(json.dumps([_row(result) for result in results], indent=1) + "\n")
    failures = Counter(failure for result in results for failure in result.errors)
    for failure, count in failures.most_common(5):
        console.print(f"{count} failed: {failure}", style="red", markup=False)
    return 1 if failures else 0


def _measure(target: LoadTarget, model: str, options: argparse.Namespace, concurrency: int, console: Console) -> LoadResult:
    fields: dict[str, Any] = {"ignore_eos": True} if options.ignore_eos else {}
    bodies = chat_bodies(
        model,
        max_tokens=options.max_tokens,
        images=options.images,
        image_size=options.image_size,
        image_share=options.image_share,
        **fields,
    )
    requests = options.requests or concurrency * 8
    tokens = TextColumn("{task.fields[tokens]} tokens")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), tokens, console=console
    ) as progress:
        task = progress.add_task(f"{concurrency} at once", total=requests, tokens=0)

        def on_outcome(outcome: Outcome) -> None:
            received = progress.tasks[task].fields["tokens"] + outcome.completion_tokens
            progress.update(task, advance=1, tokens=received)

        deadline = time.monotonic() + options.seconds
        return asyncio.run(run_load_test(target, PATH, bodies, concurrency, requests, on_outcome, deadline))


def _row(result: LoadResult) -> dict[str, float | int | None]:
    """Return the figures of one concurrency: times in milliseconds, rates per second. None: nothing was measured."""
    first_tokens = [outcome.first * 1000 for outcome in result.answered if outcome.first is not None]
    gaps = [
        (outcome.last - outcome.first) * 1000 / (outcome.completion_tokens - 1)
        for outcome in result.answered
        if outcome.first is not None and outcome.completion_tokens > 1
    ]
    return {
        "at once": result.concurrency,
        "requests": len(result.outcomes),
        "failed": len(result.errors),
        "requests/s": len(result.answered) / result.seconds,
        "tokens/s": result.tokens / result.seconds,
        "first token p50": _quantile(first_tokens, 50),
        "first token p99": _quantile(first_tokens, 99),
        "between tokens p50": _quantile(gaps, 50),
        "between tokens p99": _quantile(gaps, 99),
        "answer p50": _quantile([outcome.last * 1000 for outcome in result.answered], 50),
        "answer p99": _quantile([outcome.last * 1000 for outcome in result.answered], 99),
    }


def _quantile(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _table(results: list[LoadResult]) -> Table:
    rows = [_row(result) for result in results]
    table = Table()
    table.add_column("at once")
    for row in rows:
        table.add_column(_cell(row.pop("at once")), justify="right")
    for name in rows[0]:
        table.add_row(name, *(_cell(row[name]) for row in rows))
    return table


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _first_model(target: LoadTarget) -> str:
    """Return the first model that the server lists. Like the load test, the request uses no proxy of the environment.

    Raises httpx.HTTPError, and other errors if the response has another format.
    """
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    response = httpx.get(f"{target.url.rstrip('/')}/models", headers=headers, timeout=10, trust_env=False).raise_for_status()
    return str(response.json()["data"][0]["id"])


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway bench",
        usage="llava-gateway bench [URL] [options]",
        description="Put load on an OpenAI-compatible server: several clients stream chats at the same time. Prints requests and tokens "
        "per second, and the times to the first token and between tokens.",
        epilog="examples:\n"
        "  llava-gateway bench --concurrency 1,32\n"
        "  llava-gateway bench http://127.0.0.1:8000/v1 --images 1 --max-tokens 64 --json bench.json\n"
        "  llava-gateway bench --images 1 --image-share 0.7    # a mixed load: 70 % of the requests have a new image",
    )
    parser.add_argument("url", metavar="URL", nargs="?", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--model", default="", metavar="NAME", help="default: the first model that /v1/models lists")
    parser.add_argument("--key", default="", metavar="KEY", help="API key, sent as Authorization: Bearer")
    parser.add_argument(
        "--concurrency",
        type=_numbers,
        default=[1, 8, 32],
        metavar="N,N,...",
        help="numbers of concurrent clients to measure (default: 1,8,32)",
    )
    parser.add_argument(
        "--requests", type=int, default=0, metavar="N", help="requests for each concurrency (default: eight for each client)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        metavar="S",
        help="seconds for each concurrency; no request starts later (default: 60)",
    )
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="maximum length of an answer (default: 128)")
    parser.add_argument("--ignore-eos", action="store_true", help="for vLLM: continue each answer up to --max-tokens")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="new images in each request (default: 0)")
    parser.add_argument(
        "--image-share",
        type=_share,
        default=1.0,
        metavar="S",
        help="share of requests with --images images, from 0 to 1; the other requests are text (default: 1)",
    )
    parser.add_argument("--image-size", type=_size, default=(1600, 1200), metavar="WxH", help="pixels of each image (default: 1600x1200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def _numbers(text: str) -> list[int]:
    """Return an option's value, "1,32", as numbers. Raises ArgumentTypeError."""
    numbers = [int(number) if number.strip().isdecimal() else 0 for number in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0, such as 1,32")
    return numbers


def _share(text: str) -> float:
    """Return an option's value, "0.7", as a number from 0 to 1. Raises ArgumentTypeError."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, such as 0.7")
    return share


def _size(text: str) -> tuple[int, int]:
    """Return an option's value, "1600x1200", as width and height in pixels. Raises ArgumentTypeError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 1600x1200")
    return int(width), int(height)
