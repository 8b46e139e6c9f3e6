"""`llava-gateway batch IN OUT`: a file of requests answered, or a question about each picture of a folder."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from llava_gateway.batch.client import Asker
from llava_gateway.batch.embedded import embedded
from llava_gateway.batch.lines import BatchError, ImageFiles, RequestFile, Source, count
from llava_gateway.batch.output import Output
from llava_gateway.batch.progress import Progress
from llava_gateway.batch.run import Tally, run
from llava_gateway.cli import flags
from llava_gateway.cli.parser import Parser
from llava_gateway.client.remote import http_client, key_option, url_option
from llava_gateway.observability import logging as logs
from llava_gateway.settings import Settings, SettingsError

INTERRUPTED = 130
Engine = tuple[Settings, list[str]]
"""The gateway's settings, and vLLM's flags."""


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 if OUT has an answer to every line, 1 if it has errors, 2 if a file or an argument is wrong, 130 after a Ctrl-C."""
    parser = make_parser()
    names, rest = _leading(arguments)
    given, engine_flags = parser.parse_known_args(rest)
    try:
        source = _source(parser, given, names)
        engine = _engine(parser, given, engine_flags)
        status = _batch(given, source, Path(names[-1]), engine)
    except (BatchError, SettingsError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command goes on from here\n")
        status = INTERRUPTED
    if not given.base_url:
        # As in `serve`: the engine's processes have ended, but a thread may be left that still imports vLLM and that nobody can interrupt.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _leading(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of files, which come first, and the flags: among those of vLLM a name could not be told from a flag's value."""
    first = next((index for index, argument in enumerate(arguments) if argument.startswith("-") and argument != "-"), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def _source(parser: Parser, given: argparse.Namespace, names: Sequence[str]) -> Source:
    """Raises BatchError."""
    if given.images is None:
        if len(names) != 2:
            parser.error("give IN and OUT before all flags, or OUT with --images and --prompt")
        if Path(names[0]).exists() and Path(names[1]).exists() and Path(names[0]).samefile(names[1]):
            parser.error("IN and OUT are the same file")
        return RequestFile(Path(names[0]))
    if len(names) != 1 or not given.prompt:
        parser.error("--images goes with OUT, before all flags, and with --prompt")
    fields = {"model": given.model if given.base_url else None, "max_tokens": given.max_tokens, "temperature": given.temperature}
    return ImageFiles(given.images, given.prompt, {name: value for name, value in fields.items() if value is not None})


def _engine(parser: Parser, given: argparse.Namespace, engine_flags: Sequence[str]) -> Engine | None:
    """What to run in this process, if anything."""
    if not given.base_url:
        return flags.parse([*(("--model", given.model) if given.model else ()), *engine_flags])
    if engine_flags:
        parser.error(f"{engine_flags[0]} is no option of a batch; flags of the gateway and of vLLM go without --base-url")
    return None


def _batch(given: argparse.Namespace, source: Source, path: Path, engine: Engine | None) -> int:
    """Raises BatchError, SettingsError and KeyboardInterrupt."""
    with Output(path, retry_failed=given.retry_failed) as output:
        total, left = count(source, output.answered)
        output.begin()
        failed = output.failed
        if left:
            with Progress(total, total - left) as progress:
                tally = asyncio.run(_run(given, source, output, engine, progress))
            failed += tally.failed
            _summarise(tally)
        else:
            print(f"Nothing is left to do: {path} has all {total} lines.")
        if output.failed:
            print(f"{output.failed} failed in earlier runs; --retry-failed asks them anew.")
    return 1 if failed else 0


async def _run(given: argparse.Namespace, source: Source, output: Output, engine: Engine | None, progress: Progress) -> Tally:
    async with _clients(given, engine, progress) as clients:
        model = await _model(clients[0], given)
        progress.begin()
        asker = Asker(source.folder, model, given.patience, progress.trouble)
        return await run(asker, clients, source, output, progress.show)


@asynccontextmanager
async def _clients(given: argparse.Namespace, engine: Engine | None, progress: Progress) -> AsyncIterator[list[httpx.AsyncClient]]:
    """One for each request at once: httpx's pool of connections takes the longer for each request, the more it holds."""
    if engine is None:
        timeout, tls = httpx.Timeout(given.timeout, connect=10), httpx.create_ssl_context()
        async with AsyncExitStack() as stack:
            clients = [http_client(given.base_url, given.key, timeout, tls) for _ in range(given.concurrency)]
            yield [await stack.enter_async_context(client) for client in clients]
        return
    settings, vllm_flags = engine
    if "log_level" not in settings.model_fields_set:  # a line for each request is what OUT is
        settings = settings.model_copy(update={"log_level": "warning"})
    logs.set_up(settings)
    progress.say("loading the model")
    async with embedded(settings, vllm_flags) as client:
        yield [client] * given.concurrency


async def _model(client: httpx.AsyncClient, given: argparse.Namespace) -> str:
    """For lines that name none. Asks for it in any case, since a server that is not there is better told once than for each line. Raises
    BatchError."""
    try:
        answer = await client.get("models", timeout=10)
        if given.base_url and given.model and answer.status_code not in (401, 403):  # not every server lists its models
            return str(given.model)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, IndexError, TypeError, ValueError) as error:
        raise BatchError(f"{given.base_url} does not tell its models ({error}); is it an OpenAI-compatible server?") from error


def _summarise(tally: Tally) -> None:
    tokens = f"{tally.prompt_tokens:,} prompt and {tally.completion_tokens:,} completion tokens"
    rate = f"{tally.completion_tokens / tally.seconds:,.1f} completion tokens/s"
    print(f"{tally.done} done, {tally.failed} failed in {tally.seconds:.1f} s: {tokens}, {rate}")
    for code, times in tally.faults.most_common(5):
        print(f"{times} failed with {code}, first {tally.messages[code]}")


def make_parser() -> Parser:
    parser = Parser(
        prog="llava-gateway batch",
        usage="llava-gateway batch IN OUT [options] [serve's and vLLM's flags]\n       "
        "llava-gateway batch OUT --images PATTERN... --prompt TEXT [options] [serve's and vLLM's flags]",
        description="Answer a file of requests in OpenAI's batch format, or ask the same about each picture of a folder. OUT gets a line "
        "for each. A run that was ended goes on when the same command is given again. Pictures may be paths of this machine.",
        epilog="Without --base-url the model runs in this process, with all flags of `llava-gateway serve` and of vLLM.\n\n"
        "examples:\n"
        "  llava-gateway batch requests.jsonl answers.jsonl\n"
        '  llava-gateway batch answers.jsonl --images "photos/*.jpg" --prompt "Describe this image." --max-tokens 100\n'
        "  llava-gateway batch requests.jsonl answers.jsonl --base-url http://127.0.0.1:8000/v1",
    )
    pictures = parser.add_argument_group("a folder of pictures")
    pictures.add_argument("--images", nargs="+", metavar="PATTERN", help="paths, with *, ?, [...] and **")
    pictures.add_argument("--prompt", metavar="TEXT", help="what to ask about each")
    pictures.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer; default: the server's")
    pictures.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; default: the server's")
    server = parser.add_argument_group("who answers")
    server.add_argument("--model", metavar="NAME", help="the model to load, or to ask --base-url for where a line names none")
    server.add_argument("--base-url", type=url_option, metavar="URL", help="ask this OpenAI-compatible server, load no model")
    server.add_argument(
        "--key",
        type=key_option,
        default=os.environ.get("OPENAI_API_KEY", ""),
        metavar="KEY",
        help="sent to --base-url as Authorization: Bearer; default: the environment's OPENAI_API_KEY",
    )
    server.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds that --base-url may be silent (default: 600)")
    parser.add_argument("--concurrency", type=_positive, default=64, metavar="N", help="requests at once (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="ask the lines anew that have an error in OUT")
    parser.add_argument(
        "--patience",
        type=float,
        default=300,
        metavar="S",
        help="seconds to try a line again while the server is busy or gone (default: 300)",
    )
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number
