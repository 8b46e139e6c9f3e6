"""`llava-gateway keys new|list|revoke`: the API keys of clients. A server that uses the file applies a change within a second."""

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
    """Run the command and return its exit status. 1: the file cannot be read or changed. 2: an argument is wrong."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    path = options.file or flags.parse([])[0].keys_file
    if not path:
        parser.error("no keys file; set --file, LLAVA_KEYS_FILE, or keys_file in llava-gateway.toml")
    file = KeyFile(Path(path))
    try:
        if options.command == "new":
            _new(file, options)
        elif options.command == "list":
            _list(file)
        else:
            file.revoke(options.name)
    except ValidationError as error:
        parser.error(first_fault(error))
    except KeyFileError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _new(file: KeyFile, options: argparse.Namespace) -> None:
    secret = new_secret()
    key = Key(
        name=options.name,
        digest=digest(secret),
        models=tuple(model.strip() for model in options.models.split(",") if model.strip()),
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        concurrent=options.concurrent,
        admin=options.admin,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )
    file.add(key)
    try:
        print(secret, flush=True)
    except OSError as error:  # nobody has seen the secret, so the key is useless
        file.revoke(key.name)
        raise KeyFileError(f"the secret cannot be printed, so the key is not kept: {error.strerror}") from error
    print(f"This is the secret of {options.name}. It is shown only once: the file holds only its digest.", file=sys.stderr)


def _list(file: KeyFile) -> None:
    rows: list[tuple[str, ...]] = [COLUMNS]
    for key in file.read():
        limits = (str(limit or "-") for limit in (key.requests_per_minute, key.tokens_per_minute, key.concurrent))
        rows.append((key.name, ",".join(key.models) or "all", *limits, "yes" if key.admin else "-", key.created or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway keys",
        description="Manage the API keys of clients in a file that holds digests of the keys' secrets. A server that uses the file applies "
        "each change within a second.",
        epilog="examples:\n"
        "  llava-gateway keys new alice --file keys.json --requests-per-minute 60\n"
        "  llava-gateway serve --host 0.0.0.0 --keys-file keys.json",
    )
    common = Parser(add_help=False)
    common.add_argument("--file", metavar="FILE", help="default: LLAVA_KEYS_FILE, or keys_file of llava-gateway.toml")
    commands = parser.add_subparsers(dest="command", required=True, metavar="new|list|revoke")
    new = commands.add_parser("new", parents=[common], help="make a key and print its secret")
    new.add_argument("name", metavar="NAME", help="letters, digits and . _ -")
    new.add_argument("--models", default="", metavar="A,B", help="models that the key may use (default: all)")
    new.add_argument("--requests-per-minute", type=int, metavar="N", help="limit of requests in a minute (default: none)")
    new.add_argument("--tokens-per-minute", type=int, metavar="N", help="limit of prompt and answer tokens in a minute (default: none)")
    new.add_argument("--concurrent", type=int, metavar="N", help="limit of concurrent requests in each server process (default: none)")
    new.add_argument("--admin", action="store_true", help="allow the key to load and unload LoRA adapters (--lora-dir)")
    commands.add_parser("list", parents=[common], help="show names, models, limits and admin rights")
    commands.add_parser("revoke", parents=[common], help="remove a key, so that servers refuse it").add_argument("name", metavar="NAME")
    return parser
