"""`llava-gateway batch IN OUT`: answer a file of requests, or send the same prompt with each image of a folder."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from llava_gateway.batch.embedded import embedded
from llava_gateway.batch.lines import BatchError, ImageFiles, LineSource, RequestFile, count_lines
from llava_gateway.batch.output import OutputFile
from llava_gateway.batch.progress import BatchProgress
from llava_gateway.batch.questions import DEFAULTS, AnswersFile, QuestionFile
from llava_gateway.batch.run import BatchStats, run
from llava_gateway.batch.sender import RequestSender
from llava_gateway.cli import flags
from llava_gateway.cli.parser import Parser, positive_int
from llava_gateway.client.remote import http_client, key_option, url_option
from llava_gateway.observability import logging as logs
from llava_gateway.settings import Settings, SettingsError

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 + SIGINT."""
EngineOptions = tuple[Settings, list[str]]
"""The gateway's settings, and vLLM's flags."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    0: OUT has an answer to every line. 1: OUT has errors. 2: a file or an argument is wrong. 130: Ctrl-C.
    """
    parser = make_parser()
    names, rest = _split_leading_names(arguments)
    options, engine_flags = parser.parse_known_args(rest)
    try:
        source = _source(parser, options, names)
        engine = _engine_options(parser, options, engine_flags)
        status = _batch(options, source, Path(names[-1]), engine)
    except (BatchError, SettingsError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same command goes on from here\n")
        status = INTERRUPTED
    if not options.base_url:
        # As in `serve`: the engine's processes have ended, but a thread may still import vLLM, and it cannot be interrupted.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _split_leading_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into file names, which come first, and flags. After vLLM's flags, a name would look like a flag's value."""
    first_flag = next((index for index, argument in enumerate(arguments) if argument.startswith("-") and argument != "-"), len(arguments))
    return list(arguments[:first_flag]), list(arguments[first_flag:])


def _source(parser: Parser, options: argparse.Namespace, names: Sequence[str]) -> LineSource:
    """Return the source of the requests. Raises BatchError, and exits if the arguments do not fit together."""
    given = {
        "model": options.model if options.base_url else None,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if options.images is None:
        if len(names) != 2:
            parser.error("give IN and OUT before all flags, or OUT with --images and --prompt")
        if Path(names[0]).exists() and Path(names[1]).exists() and Path(names[0]).samefile(names[1]):
            parser.error("IN and OUT are the same file")
        path = Path(names[0])
        return RequestFile(path) if options.image_folder is None else QuestionFile(path, options.image_folder, DEFAULTS | fields)
    if len(names) != 1 or not options.prompt or options.image_folder:
        parser.error("--images needs OUT, before all flags, and --prompt; it takes no IN and no --image-folder")
    return ImageFiles(options.images, options.prompt, fields)


def _engine_options(parser: Parser, options: argparse.Namespace, engine_flags: Sequence[str]) -> EngineOptions | None:
    """Return the options of an engine in this process. None: --base-url names a server."""
    if not options.base_url:
        return flags.parse([*(("--model", options.model) if options.model else ()), *engine_flags])
    if engine_flags:
        parser.error(f"unknown option {engine_flags[0]}; flags of the gateway and of vLLM cannot be used with --base-url")
    return None


def _batch(options: argparse.Namespace, source: LineSource, path: Path, engine: EngineOptions | None) -> int:
    """Send the unanswered lines and return the exit status. Raises BatchError, SettingsError and KeyboardInterrupt."""
    output_file = OutputFile if options.image_folder is None else AnswersFile
    with output_file(path, retry_failed=options.retry_failed) as output:
        counts = count_lines(source, output.answered)
        output.begin()
        failed = output.failed + len(counts.invalid)
        for line in counts.invalid:
            output.append_error(line)
        if counts.unanswered:
            with BatchProgress(counts.total, counts.total - counts.unanswered) as progress:
                stats = asyncio.run(_run(options, source, output, engine, progress))
            failed += stats.failed
            _print_summary(stats)
        elif not counts.invalid:
            print(f"Nothing to do: {path} has a line for each of the {counts.total} requests.")
        output.finish()
        if counts.invalid:
            print(f"{len(counts.invalid)} lines of {source.name} are not requests, first {counts.invalid[0].message}")
        if output.failed:
            print(f"{output.failed} failed in earlier runs; --retry-failed sends them again.")
    return 1 if failed else 0


async def _run(
    options: argparse.Namespace, source: LineSource, output: OutputFile, engine: EngineOptions | None, progress: BatchProgress
) -> BatchStats:
    async with _clients(options, engine, progress) as clients:
        model = await _default_model(clients[0], options)
        progress.begin()
        sender = RequestSender(source.folder, model, options.patience, progress.show_retry)
        return await run(sender, clients, source, output, progress.show)


@asynccontextmanager
async def _clients(
    options: argparse.Namespace, engine: EngineOptions | None, progress: BatchProgress
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Yield one client for each concurrent request: httpx spends more time on each request, the more connections its pool holds."""
    if engine is None:
        timeout, tls = httpx.Timeout(options.timeout, connect=10), httpx.create_ssl_context()
        async with AsyncExitStack() as stack:
            clients = [http_client(options.base_url, options.key, timeout, tls) for _ in range(options.concurrency)]
            yield [await stack.enter_async_context(client) for client in clients]
        return
    settings, vllm_flags = engine
    if "log_level" not in settings.model_fields_set:  # the log's line for each request would repeat OUT
        settings = settings.model_copy(update={"log_level": "warning"})
    logs.set_up(settings)
    progress.show_step("loading the model")
    async with embedded(settings, vllm_flags) as client:
        yield [client] * options.concurrency


async def _default_model(client: httpx.AsyncClient, options: argparse.Namespace) -> str:
    """Return the model for lines that name none.

    The server is asked even if --model is given: if it cannot be reached, one message is better than one for each line.
    Raises BatchError.
    """
    try:
        response = await client.get("models", timeout=10)
        if options.base_url and options.model and response.status_code not in (401, 403):  # some servers do not list their models
            return str(options.model)
        return str(response.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, IndexError, TypeError, ValueError) as error:
        raise BatchError(f"{options.base_url} does not list its models ({error}); is it an OpenAI-compatible server?") from error


def _print_summary(stats: BatchStats) -> None:
    tokens = f"{stats.prompt_tokens:,} prompt and {stats.completion_tokens:,} completion tokens"
    rate = f"{stats.completion_tokens / stats.seconds:,.1f} completion tokens/s"
    print(f"{stats.done} done, {stats.failed} failed in {stats.seconds:.1f} s: {tokens}, {rate}")
    for code, count in stats.error_codes.most_common(5):
        print(f"{count} failed with {code}, first {stats.first_messages[code]}")


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway batch",
        usage="llava-gateway batch IN OUT [options] [serve's and vLLM's flags]\n       "
        "llava-gateway batch IN OUT --image-folder DIR [options] [serve's and vLLM's flags]\n       "
        "llava-gateway batch OUT --images PATTERN... --prompt TEXT [options] [serve's and vLLM's flags]",
        description="Answer a file of requests in OpenAI's batch format or a file of LLaVA's questions, or send the same prompt with each "
        "image of a folder. OUT gets one line for each request. If a run was interrupted, the same command resumes it. Images may be paths "
        "of files on this machine.",
        epilog="Without --base-url the model runs in this process, with all flags of `llava-gateway serve` and of vLLM.\n\n"
        "examples:\n"
        "  llava-gateway batch requests.jsonl answers.jsonl\n"
        "  llava-gateway batch questions.jsonl answers.jsonl --image-folder images --temperature 0\n"
        '  llava-gateway batch answers.jsonl --images "photos/*.jpg" --prompt "Describe this image." --max-tokens 100\n'
        "  llava-gateway batch requests.jsonl answers.jsonl --base-url http://127.0.0.1:8000/v1",
    )
    images = parser.add_argument_group("a folder of images")
    images.add_argument("--images", nargs="+", metavar="PATTERN", help="paths of images, with *, ?, [...] and **")
    images.add_argument("--prompt", metavar="TEXT", help="the text that is sent with each image")
    questions = parser.add_argument_group("a file of LLaVA's questions")
    questions.add_argument(
        "--image-folder",
        type=Path,
        metavar="DIR",
        help="IN has questions as LLaVA's model_vqa.py reads them, with images in DIR, and OUT gets answers as it writes them",
    )
    answers = parser.add_argument_group("answers to images and questions")
    defaults = "default: the server's, and model_vqa.py's for questions"
    answers.add_argument("--max-tokens", type=int, metavar="N", help=f"maximum length of an answer; {defaults} ({DEFAULTS['max_tokens']})")
    answers.add_argument("--temperature", type=float, metavar="T", help=f"0 is greedy; {defaults} ({DEFAULTS['temperature']})")
    server = parser.add_argument_group("model and server")
    server.add_argument("--model", metavar="NAME", help="the model to load; with --base-url, the model for lines that name none")
    server.add_argument("--base-url", type=url_option, metavar="URL", help="send to this OpenAI-compatible server and load no model")
    server.add_argument(
        "--key",
        type=key_option,
        default=os.environ.get("OPENAI_API_KEY", ""),
        metavar="KEY",
        help="API key for --base-url, sent as Authorization: Bearer; default: the environment variable OPENAI_API_KEY",
    )
    server.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds that --base-url may be silent (default: 600)")
    parser.add_argument("--concurrency", type=positive_int, default=64, metavar="N", help="concurrent requests (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="send the lines that have an error in OUT again")
    parser.add_argument(
        "--patience",
        type=float,
        default=300,
        metavar="S",
        help="seconds to retry a line while the server is busy or cannot be reached (default: 300)",
    )
    return parser
