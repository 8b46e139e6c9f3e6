"""`llava-gateway doctor`: what works on this machine, and what to do about the rest."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from llava_gateway.cli.listeners import ListenError, check_keys, listen
from llava_gateway.cli.parser import Parser
from llava_gateway.doctor.finding import Finding
from llava_gateway.doctor.hub import check_hub
from llava_gateway.doctor.machine import check_machine
from llava_gateway.doctor.packages import check_packages, engine, is_built_for_cpu
from llava_gateway.doctor.repair import RepairError, repair
from llava_gateway.settings import Settings, SettingsError, server_url

SETTINGS_FILE = Path("llava-gateway.toml")
CAN_START = "A server can start. `llava-gateway models` lists the models that fit."
CANNOT_START = "A server cannot start: each fault above must be removed first."


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. 0: a server can start. 1: it cannot, or the repair has failed."""
    options = make_parser().parse_args(arguments)
    if options.repair:
        try:
            for change in repair() or ["nothing to repair"]:
                sys.stderr.write(f"{change}\n")
        except RepairError as error:
            sys.stderr.write(f"llava-gateway doctor: {error}\n")
            return 1
    findings = list(_check())
    can_start = all(finding.level != "fault" for finding in findings)
    if options.json:
        print(json.dumps({"can_start": can_start, "findings": [finding.as_dict() for finding in findings]}, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(finding.lines(width))
        print(f"\n{CAN_START if can_start else CANNOT_START}")
    return 0 if can_start else 1


def _check() -> Iterator[Finding]:
    name = engine()
    yield from check_machine(None if name is None else is_built_for_cpu(name))
    yield from check_packages()
    yield from check_hub()
    yield from check_settings()


def check_settings() -> Iterator[Finding]:
    """Yield the findings about the settings from the environment and the file, and about the address that they name."""
    try:
        settings = Settings()
    except (ValidationError, ValueError, OSError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (SETTINGS_FILE,), "msg": str(error)}
        where = first["loc"][0] if first["loc"] else "a setting"
        yield Finding("settings", "fault", f"{where}: {first['msg']}", f"correct it in {SETTINGS_FILE} or in the variable LLAVA_...")
        return
    variables = sorted(name for name in os.environ if name.startswith("LLAVA_"))
    sources = [*([str(SETTINGS_FILE.absolute())] if SETTINGS_FILE.exists() else []), *variables]
    yield Finding("settings", "ok", f"from {', '.join(sources)}" if sources else "the defaults; no file and no variable sets one")
    if settings.uds:  # opening the socket would take it away from a running server
        yield Finding("address", "ok", f"the Unix domain socket {settings.uds}")
        return
    try:
        check_keys(settings)
        for listener in listen(settings):
            listener.close()
    except SettingsError as error:
        yield Finding("address", "fault", str(error).removesuffix("."))
    except ListenError as error:
        yield Finding("address", "fault", str(error), "stop the program that uses the port, or set another one with --port")
    else:
        yield Finding("address", "ok", f"{server_url(settings)} is free")


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway doctor",
        description="Say what works on this machine and what to do about the rest: packages, CPU, memory, GPUs, model cache, network, "
        "settings and port. Nothing is changed without --repair. The exit status is 0 if a server can start, and 1 if not. `fault` marks "
        "what prevents a start, `note` what a server can do without.",
        epilog="examples:\n  llava-gateway doctor\n  llava-gateway doctor --repair\n"
        "  llava-gateway doctor --json | jq -r '.findings[] | select(.level == \"fault\") | .text'",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="first repair an installation for CPUs whose torchvision is built for another torch: declare its operators in this "
        "environment, and uninstall torchaudio and torchcodec if they cannot load",
    )
    return parser
