"""The flags of `llava-gateway serve`: one for each setting, for example `--max-body-mb` for `max_body_mb`. Other flags go to vLLM."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from llava_gateway.cli.parser import Parser
from llava_gateway.cli.vllm_flags import ConfigError, add_server_flags, expand, refusal
from llava_gateway.settings import Settings, default_of

ALIASES = {"api_keys": ("--api-key",)}
VLLM_ALIASES = {
    "template": "--chat-template",
    "image_hosts": "--allowed-media-domains",
    "cors_origins": "--allowed-origins",
    "keep_alive": "--sse-keep-alive-interval",
    "log_level": "--uvicorn-log-level",
}
"""The flags of vLLM's server that mean the same as a setting. They are left out of --help."""
SEVERAL = {"action": "extend", "nargs": "+"}
VLLM_LEVELS = {"critical": "error", "trace": "debug"}


def _log_level(value: str) -> str:
    """Return a level of uvicorn as a level of the gateway."""
    return VLLM_LEVELS.get(value, value)


def _origins(value: str) -> str:
    """Return vLLM's form of origins, a JSON list, as a comma-separated text. Other texts are returned unchanged."""
    return ",".join(map(str, json.loads(value))) if value.startswith("[") else value


OPTIONS: dict[str, dict[str, Any]] = {
    "served_model_name": {"nargs": "+"},
    "lora_modules": SEVERAL,
    "api_keys": SEVERAL,
    "image_hosts": SEVERAL,
    "cors_origins": SEVERAL | {"type": _origins},
    "log_level": {"type": _log_level},
}
"""Options of argparse for flags that take vLLM's forms of a value."""
JOINED = ("api_keys", "image_hosts", "cors_origins")
"""Settings whose several values are joined by commas."""
FILES = ("template", "keys_file", "usage_log", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "uds")
"""Settings whose values are files."""
GROUPS = {
    "model": "model",
    "host": "server",
    "max_running": "limits",
    "max_image_mb": "images",
    "engine_timeout": "engine",
    "api_keys": "access",
    "log_level": "logs",
    "feedback_dir": "feedback",
}
"""Titles of the groups of --help, by the first setting of each group."""


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Return the settings and the flags for vLLM. Exits with one line and status 2 if a value is wrong."""
    parser = make_parser()
    try:
        arguments = expand(arguments)
    except ConfigError as error:
        parser.error(str(error))
    no_model = [""] if not arguments or arguments[0].startswith("-") else []  # otherwise argparse takes a value of vLLM's flags as MODEL
    options, engine_flags = parser.parse_known_args([*no_model, *arguments])
    for flag in engine_flags:
        if reason := refusal(flag):
            parser.error(reason)
    values: dict[str, Any] = {name: value for name, value in vars(options).items() if value is not None}
    values |= {name: ",".join(values[name]) for name in JOINED if name in values}
    if names := values.pop("served_model_name", None):
        values["served_model_name"], *more = names
        if more:
            values["model_alias"] = ",".join([*more, values["model_alias"]] if "model_alias" in values else more)
    model = values.pop("MODEL")
    if model and values.setdefault("model", model) != model:
        parser.error(f"the model is given twice, as {model} and as --model {values['model']}")
    try:
        return Settings(**values), engine_flags
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        parser.exit(2, f"llava-gateway: {name} (--{name.replace('_', '-')} or LLAVA_{name.upper()}): {first['msg']}\n")


def make_parser() -> Parser:
    """Return the parser of all settings' flags."""
    parser = Parser(
        prog="llava-gateway serve",
        usage="llava-gateway serve [MODEL] [flags] [vLLM's flags]",
        description="Serve a LLaVA model over the OpenAI API. Each flag is also an environment variable (LLAVA_PORT) and a key of "
        "llava-gateway.toml in the working directory (port). Flags override the environment, and the environment overrides the file.",
        epilog="All other flags go to vLLM unchanged: --dtype, --quantization, --max-model-len, --gpu-memory-utilization, ... "
        "vLLM's --config FILE may have flags of both kinds. LLaVA's --load-8bit quantizes the weights while they load (docs/models.md).\n\n"
        "examples:\n"
        "  llava-gateway serve llava-demo --port 9000\n"
        "  llava-gateway serve llava-hf/llava-1.5-7b-hf --max-model-len 2048\n"
        "  llava-gateway serve --host 0.0.0.0 --keys-file keys.json",
    )
    parser.add_argument("MODEL", nargs="?", help="the same as --model; must be the first argument")
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        default = f" (default: {default_of(name)})" if default_of(name) else ""
        options: dict[str, Any] = {"choices": get_args(field.annotation)} if get_origin(field.annotation) is Literal else {}
        options |= OPTIONS.get(name, {}) | {"dest": name, "metavar": _metavar(name, field.annotation)}
        description = f"{field.description}{default}".replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", *ALIASES.get(name, ()), help=description, **options)
        if name in VLLM_ALIASES:
            group.add_argument(VLLM_ALIASES[name], help=argparse.SUPPRESS, **options)
    add_server_flags(parser)
    return parser


def _metavar(name: str, kind: Any) -> str:
    """Return the name of a flag's value in --help: the possible values, a unit, or the last word of the setting's name."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if name == "lora_modules":
        return "NAME=DIR"
    if get_origin(kind) is tuple:
        return "A,B"
    if name in FILES:
        return "FILE"
    return {int: "N", float: "SECONDS"}.get(kind) or name.rpartition("_")[2].upper()
