"""`llava-gateway keys new|list|revoke`: who may ask. A server that reads the file follows each change within a second."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from llava_gateway.auth.api_keys import Key, KeyFile, KeyFileError, digest, first_fault, new_secret
from llava_gateway.cli import flags
from llava_gateway.cli.parser import Parser

COLUMNS = ("NAME", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "CONCURRENT", "ADMIN", "CREATED")


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 if the file does not allow it, 2 if an argument is wrong."""
    parser = make_parser()
    given = parser.parse_args(arguments)
    path = given.file or flags.parse([])[0].keys_file
    if not path:
        parser.error("which file? Give --file, LLAVA_KEYS_FILE, or keys_file in llava-gateway.toml")
    file = KeyFile(Path(path))
    try:
        if given.command == "new":
            _new(file, given)
        elif given.command == "list":
            _list(file)
        else:
            file.revoke(given.name)
    except ValidationError as error:
        parser.error(first_fault(error))
    except KeyFileError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _new(file: KeyFile, given: argparse.Namespace) -> None:
    secret = new_secret()
    key = Key(
        name=given.name,
        digest=digest(secret),
        models=tuple(model.strip() for model in given.models.split(",") if model.strip()),
        requests_per_minute=given.requests_per_minute,
        tokens_per_minute=given.tokens_per_minute,
        concurrent=given.concurrent,
        admin=given.admin,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )
    file.add(key)
    try:
        print(secret, flush=True)
    except OSError as error:  # a key that nobody has seen is of no use
        file.revoke(key.name)
        raise KeyFileError(f"the secret cannot be shown, and the key is not kept: {error.strerror}") from error
    print(f"This is the secret of {given.name}. It is shown only once: the file holds no more than its digest.", file=sys.stderr)


def _list(file: KeyFile) -> None:
    rows: list[tuple[str, ...]] = [COLUMNS]
    for key in file.read():
        limits = (str(limit or "-") for limit in (key.requests_per_minute, key.tokens_per_minute, key.concurrent))
        rows.append((key.name, ",".join(key.models) or "all", *limits, "yes" if key.admin else "-", key.created or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def make_parser() -> Parser:
    parser = Parser(
        prog="llava-gateway keys",
        description="Keys of clients, in a file that holds digests of their secrets. A server that reads the file follows each change "
        "within a second.",
        epilog="examples:\n"
        "  llava-gateway keys new alice --file keys.json --requests-per-minute 60\n"
        "  llava-gateway serve --host 0.0.0.0 --keys-file keys.json",
    )
    common = Parser(add_help=False)
    common.add_argument("--file", metavar="FILE", help="default: LLAVA_KEYS_FILE, or keys_file of llava-gateway.toml")
    commands = parser.add_subparsers(dest="command", required=True, metavar="new|list|revoke")
    new = commands.add_parser("new", parents=[common], help="make a key and print its secret")
    new.add_argument("name", metavar="NAME", help="letters, digits and . _ -")
    new.add_argument("--models", default="", metavar="A,B", help="models that it may ask for (default: all)")
    new.add_argument("--requests-per-minute", type=int, metavar="N", help="default: no limit")
    new.add_argument("--tokens-per-minute", type=int, metavar="N", help="of prompts and answers together (default: no limit)")
    new.add_argument("--concurrent", type=int, metavar="N", help="requests at once, in each server process (default: no limit)")
    new.add_argument("--admin", action="store_true", help="may also load and unload LoRA adapters (--lora-dir)")
    commands.add_parser("list", parents=[common], help="names, models, limits, and who is admin")
    commands.add_parser("revoke", parents=[common], help="refuse a key from now on").add_argument("name", metavar="NAME")
    return parser
