"""vLLM's command line, as people copy it: its spellings, its `--config` file, and the flags of its API server.

Flags of vLLM's engine go to vLLM unchanged. A flag of vLLM's API server is another name of a setting, or it is refused
with a sentence that says what to do. It is accepted where it asks for the gateway's own behavior.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_gateway.files import read_file

UNDERSCORED = re.compile(r"--[^.=]*")
"""The part of a flag in which vLLM takes underscores for hyphens."""
MAX_CONFIG = 1 << 20
"""The upper bound of a `--config` file, in bytes."""
STORE_TRUE = {"disable-log-stats", "aggregate-engine-logging", "data-parallel-multi-port-external-lb", "headless", "grpc"}
"""vLLM's switches without a form that begins with `--no-`."""

_LOGS = "use --usage-log, or --log-level debug"
_NO_ENDPOINT = "the gateway does not serve this API"
_PROCESSES = "one gateway serves one engine in one process; docs/cluster.md describes several engines"
_TEMPLATE = "clients cannot change the chat template; see --template"
_FINGERPRINT = "the gateway decides the value of system_fingerprint"

REFUSED_SWITCHES = {
    "--headless": _PROCESSES,
    "--grpc": _NO_ENDPOINT,
    "--trust-request-chat-template": _TEMPLATE,
    "--trust-request-mm-kwargs": "the gateway decodes and resizes images itself",
    "--return-tokens-as-token-ids": "a client asks for it in its request",
    "--enable-per-request-metrics": "use --usage-log, or the metrics at /metrics",
    "--enable-server-load-tracking": "the load is in the metrics at /metrics",
    "--enable-force-include-usage": "a client asks for it by stream_options",
    "--enable-tokenizer-info-endpoint": _NO_ENDPOINT,
    "--enable-log-outputs": _LOGS,
    "--no-enable-log-deltas": _LOGS,
    "--no-cohere-is-reasoning-model": _NO_ENDPOINT,
    "--log-error-stack": "tracebacks of failed requests are always in the log",
    "--tokens-only": _NO_ENDPOINT,
    "--enable-scale-out": _NO_ENDPOINT,
    "--allow-credentials": "pages send an API key in a header and no cookies; see --cors-origins",
    "--enable-ssl-refresh": "restart the server when its certificate has changed",
    "--enable-offline-docs": "the page at /docs needs no other host; leave out this flag",
    "--no-enable-flash-late-interaction": _NO_ENDPOINT,
    "--disable-fastapi-docs": "block /openapi.json and /docs in a proxy",
}
"""Switches that are refused, by their exact form. The opposite form asks for the gateway's own behavior and is accepted."""
ACCEPTED_SWITCHES = (
    *("--enable-auto-tool-choice", "--exclude-tools-when-tool-choice-none", "--enable-prompt-tokens-details"),
    *("--disable-uvicorn-access-log", "--enable-request-id-headers", "--disable-log-requests"),
)
"""Switches that ask for the gateway's own behavior."""
REFUSED_VALUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "--api-server-count": (_PROCESSES, ("1",)),
    "--chat-template-content-format": ("the chat template decides it", ("auto",)),
    "--default-chat-template-kwargs": ("chat templates take no arguments", ("{}",)),
    "--response-role": ("answers have the role assistant", ("assistant",)),
    "--tool-parser-plugin": ("the gateway loads no plugins", ("",)),
    "--tool-strict-level": ("a client asks for it by tool_choice and strict", ("auto",)),
    "--tool-server": ("clients run their tools themselves", ()),
    "--max-log-len": (_LOGS, ()),
    "--cohere-format": (_NO_ENDPOINT, ("cmd4",)),
    "--anthropic-disabled-thinking-effort": (_NO_ENDPOINT, ("auto",)),
    "--fingerprint-mode": (_FINGERPRINT, ()),
    "--fingerprint-value": (_FINGERPRINT, ()),
    "--grpc-port": (_NO_ENDPOINT, ()),
    "--data-parallel-supervisor-port": (_PROCESSES, ("9256",)),
    "--dp-supervisor-probe-interval-s": (_PROCESSES, ("5.0",)),
    "--dp-supervisor-probe-timeout-s": (_PROCESSES, ("5.0",)),
    "--dp-supervisor-probe-failure-threshold": (_PROCESSES, ("3",)),
    "--disable-access-log-for-endpoints": ("the gateway logs no probes; see --log-level", ()),
    "--allowed-methods": ("pages of --cors-origins may send GET and POST", ('["*"]',)),
    "--allowed-headers": ("pages of --cors-origins may send all headers", ('["*"]',)),
    "--middleware": ("create the app with llava_gateway.create_app and add middleware to it", ()),
    "--h11-max-incomplete-event-size": ("a request's headers may have 64 KiB", ()),
    "--h11-max-header-count": ("a request's headers may have 64 KiB", ()),
    "--allowed-local-media-path": ("the server reads no local files for its clients; `llava-gateway batch` does", ("",)),
}
"""Flags with a value, each with the reason of the refusal and with the values that ask for the gateway's own behavior."""
SHORT = {"--api-server-count": ("-asc",)}


class ConfigError(Exception):
    """A `--config` file cannot be used. The message is one line."""


class _Refuse(argparse.Action):
    """Refuses a flag, unless its value asks for the gateway's own behavior."""

    def __init__(self, option_strings: Sequence[str], dest: str, reason: str = "", accepted: Sequence[str] = (), **options: Any) -> None:
        super().__init__(option_strings, dest, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **options)
        self._reason, self._accepted = reason, accepted

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, value: Any, option_string: str | None = None) -> None:
        if self._reason and value not in self._accepted:
            raise argparse.ArgumentError(self, f"is vLLM's and not supported here: {self._reason}")


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Have a parser know the flags of vLLM's API server that are not settings. They are left out of --help."""
    switches = REFUSED_SWITCHES | dict.fromkeys(ACCEPTED_SWITCHES, "")
    for flag, reason in switches.items():
        parser.add_argument(flag, nargs=0, action=_Refuse, reason=reason)
        parser.add_argument(_opposite(flag), nargs=0, action=_Refuse)
    for flag, (reason, accepted) in REFUSED_VALUES.items():
        parser.add_argument(flag, *SHORT.get(flag, ()), action=_Refuse, reason=reason, accepted=accepted)


def refusal(flag: str) -> str | None:
    """Return why a flag in vLLM's dotted form, such as `--default-chat-template-kwargs.key`, is refused. None: it may be the engine's."""
    name = flag.partition(".")[0]
    return f"argument {name}: is vLLM's and not supported here: {REFUSED_VALUES[name][0]}" if name in REFUSED_VALUES else None


def expand(arguments: Sequence[str]) -> list[str]:
    """Return a command line with hyphens instead of underscores in the flags, and with the flags of its `--config` file.

    The file's flags come before the other flags, which therefore override them. Raises ConfigError.
    """
    expanded, file = [], None
    rest = iter(arguments)
    for argument in rest:
        flag = UNDERSCORED.match(argument)
        argument = flag[0].replace("_", "-") + argument[flag.end() :] if flag else argument
        if argument == "--config":
            file = next(rest, "")
        elif argument.startswith("--config="):
            file = argument.partition("=")[2]
        else:
            expanded.append(argument)
    if file is None:
        return expanded
    has_model = bool(expanded) and not expanded[0].startswith("-")
    model = expanded[:1] if has_model else []
    return [*model, *_flags_of(_read(Path(file)), without_model=has_model), *expanded[len(model) :]]


def _read(file: Path) -> dict[str, Any]:
    try:
        import yaml  # vLLM needs it, too
    except ImportError as error:
        raise ConfigError("--config needs the package pyyaml") from error
    try:
        config = yaml.safe_load(read_file(file, MAX_CONFIG))
    except OSError as error:
        raise ConfigError(f"--config {file} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise ConfigError(f"--config {file} is not a YAML file of vLLM's flags, such as `max-model-len: 2048`")
    return config


def _flags_of(config: dict[str, Any], *, without_model: bool) -> Iterator[str]:
    """Yield the flags of a configuration file as vLLM reads it: lists are several values, nested objects are JSON."""
    for key, value in config.items():
        name = key.replace("_", "-")
        if value is None or (name == "model" and without_model) or (value is False and name in STORE_TRUE):
            continue
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value)) if value else ()
        else:
            yield f"--{name}"
            yield json.dumps(value) if isinstance(value, dict) else str(value)


def _opposite(flag: str) -> str:
    return f"--{flag.removeprefix('--no-')}" if flag.startswith("--no-") else f"--no-{flag.removeprefix('--')}"
