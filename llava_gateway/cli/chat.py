"""`llava-gateway chat`: chat with a model about images in the terminal, or ask one question, for example in a pipe."""

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from rich.console import Console

from llava_gateway.cli.chat_conversation import ChatError, Conversation, first_model
from llava_gateway.cli.chat_terminal import Terminal
from llava_gateway.cli.parser import Parser
from llava_gateway.client.local_server import LocalServerError, local_server
from llava_gateway.client.remote import DEFAULT_URL, http_client, image_part, key_option, url_option

TIMEOUT = httpx.Timeout(600, connect=10)
"""Seconds without a byte from the server. Long prompts on slow machines have needed that much time."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    1: the answer is missing or incomplete, or the server cannot be reached. 2: an argument is wrong.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.serve_flags and (options.base_url or not options.model):
        parser.error("--serve-flags needs --model, without --base-url and OPENAI_BASE_URL")
    images = _image_parts(options.image, parser)
    in_terminal = not options.question and sys.stdin.isatty() and sys.stdout.isatty()
    question = "" if in_terminal else (" ".join(options.question) or sys.stdin.read()).strip()
    if not in_terminal and not question:
        parser.error("there is no question; give it as an argument or on standard input")
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    try:
        with asyncio.Runner() as runner, _client(options, runner, console) as client:
            named = options.model if options.base_url else None  # a model that this command has loaded may have another name
            fields = {"model": named or runner.run(first_model(client)), **_sampling_fields(options)}
            conversation = Conversation(client, runner, fields, options.system, images)
            if in_terminal:
                Terminal(conversation, console).run()
            else:
                answer = conversation.ask(question)
                if sys.stdout.isatty() and console.is_terminal:
                    console.print(answer.summary(), style="dim", markup=False)
    except (ChatError, LocalServerError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


@contextmanager
def _client(options: argparse.Namespace, runner: asyncio.Runner, console: Console) -> Iterator[httpx.AsyncClient]:
    """Yield a client of the server that the options name, or of a new server of the model. Raises LocalServerError."""
    with ExitStack() as stack:
        if options.base_url or not options.model:
            client = http_client(options.base_url or DEFAULT_URL, options.key, TIMEOUT)
        else:
            with console.status(f"loading {options.model}"):
                server = stack.enter_context(local_server(options.model, options.serve_flags))
            client = http_client(server.url, server.key, TIMEOUT, proxies=False)
        stack.callback(lambda: runner.run(client.aclose()))
        yield client


def _image_parts(sources: list[str], parser: Parser) -> list[dict[str, Any]]:
    """Return the images as parts of a message. Exits if a file cannot be read."""
    parts = []
    for source in sources:
        try:
            parts.append(image_part(source))
        except OSError as error:
            parser.error(f"--image {source}: {error.strerror}")
    return parts


def _sampling_fields(options: argparse.Namespace) -> dict[str, Any]:
    fields = {"temperature": options.temperature, "top_p": options.top_p, "max_tokens": options.max_tokens}
    return {name: value for name, value in fields.items() if value is not None}


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway chat",
        usage="llava-gateway chat [options] [QUESTION]",
        description="Chat with a model of any OpenAI-compatible server, or load a model with --model. With a QUESTION, as an argument or "
        "on standard input, print the answer and end. Otherwise chat in the terminal, where /help lists the commands.",
        epilog="examples:\n"
        "  llava-gateway chat\n"
        '  llava-gateway chat --image photo.jpg "What is this?"\n'
        "  llava-gateway chat --model llava-hf/llava-1.5-7b-hf --image photo.jpg\n"
        "  cat question.txt | llava-gateway chat --image a.jpg --image b.jpg\n"
        "  llava-gateway chat --base-url https://llava.example.com/v1",
    )
    parser.add_argument(
        "question", metavar="QUESTION", nargs="*", help="one question to answer; default: standard input, unless it is a terminal"
    )
    parser.add_argument(
        "--image", metavar="FILE|URL", action="append", default=[], help="an image to send with the first question; may be repeated"
    )
    parser.add_argument("--system", metavar="TEXT", default="", help="a system message")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--base-url",
        metavar="URL",
        type=url_option,
        default=os.environ.get("OPENAI_BASE_URL") or None,
        help=f"default: the environment variable OPENAI_BASE_URL, or {DEFAULT_URL} if there is no --model",
    )
    server.add_argument(
        "--key",
        metavar="KEY",
        type=key_option,
        default=os.environ.get("OPENAI_API_KEY", ""),
        help="API key, sent as Authorization: Bearer; default: the environment variable OPENAI_API_KEY, which other users of this "
        "machine cannot see",
    )
    server.add_argument(
        "--model",
        metavar="NAME",
        help="with a base URL: the server's model; default: the first that it lists. Without: the model to load, a directory or a "
        "Hugging Face id, with the settings of `llava-gateway serve` in the environment and llava-gateway.toml",
    )
    server.add_argument(
        "--serve-flags",
        metavar="FLAGS",
        type=shlex.split,
        default=[],
        help="flags of `llava-gateway serve` and of vLLM for the model to load, in one argument: --serve-flags='--max-model-len 2048'",
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument("--temperature", metavar="T", type=float, help="0 is greedy; default: the server's")
    answers.add_argument("--top-p", metavar="P", type=float, help="probability mass to sample from, 0 to 1; default: the server's")
    answers.add_argument("--max-tokens", metavar="N", type=int, help="maximum length of an answer; default: the server's")
    return parser
