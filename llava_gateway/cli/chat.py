"""`llava-gateway chat`: chat with a model about images in the terminal, or ask one question, for example in a pipe."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import httpx
from rich.console import Console

from llava_gateway.cli.chat_conversation import ChatError, Conversation, first_model
from llava_gateway.cli.chat_terminal import Terminal
from llava_gateway.cli.parser import Parser
from llava_gateway.client.remote import DEFAULT_URL, http_client, image_part, key_option, url_option

TIMEOUT = httpx.Timeout(600, connect=10)
"""Seconds without a byte from the server. Long prompts on slow machines have needed that much time."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    1: the answer is missing or incomplete, or the server cannot be reached. 2: an argument is wrong.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    images = _image_parts(options.image, parser)
    in_terminal = not options.question and sys.stdin.isatty() and sys.stdout.isatty()
    question = "" if in_terminal else (" ".join(options.question) or sys.stdin.read()).strip()
    if not in_terminal and not question:
        parser.error("there is no question; give it as an argument or on standard input")
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    with asyncio.Runner() as runner:
        client = http_client(options.base_url, options.key, TIMEOUT)
        try:
            model = options.model or runner.run(first_model(client))
            conversation = Conversation(client, runner, {"model": model, **_sampling_fields(options)}, options.system, images)
            if in_terminal:
                Terminal(conversation, console).run()
            else:
                answer = conversation.ask(question)
                if sys.stdout.isatty() and console.is_terminal:
                    console.print(answer.summary(), style="dim", markup=False)
        except ChatError as error:
            sys.stderr.write(f"{parser.prog}: {error}\n")
            return 1
        finally:
            runner.run(client.aclose())
    return 0


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
        description="Chat with a model of any OpenAI-compatible server. With a QUESTION, as an argument or on standard input, print the "
        "answer and end. Otherwise chat in the terminal, where /help lists the commands.",
        epilog="examples:\n"
        "  llava-gateway chat\n"
        '  llava-gateway chat --image photo.jpg "What is this?"\n'
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
        default=os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL,
        help=f"default: the environment variable OPENAI_BASE_URL, or {DEFAULT_URL}",
    )
    server.add_argument(
        "--key",
        metavar="KEY",
        type=key_option,
        default=os.environ.get("OPENAI_API_KEY", ""),
        help="API key, sent as Authorization: Bearer; default: the environment variable OPENAI_API_KEY, which other users of this "
        "machine cannot see",
    )
    server.add_argument("--model", metavar="NAME", help="default: the first model that the server lists")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--temperature", metavar="T", type=float, help="0 is greedy; default: the server's")
    answers.add_argument("--top-p", metavar="P", type=float, help="probability mass to sample from, 0 to 1; default: the server's")
    answers.add_argument("--max-tokens", metavar="N", type=int, help="maximum length of an answer; default: the server's")
    return parser
