"""The flags of `llava-gateway serve`: one for each setting, for example `--max-body-mb` for `max_body_mb`. Other flags go to vLLM."""

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from llava_gateway.cli.parser import Parser
from llava_gateway.settings import Settings, default_of

ALIASES = {"api_keys": ("--api-key",)}
REPEATED: dict[str, dict[str, Any]] = {"api_keys": {"action": "append"}, "lora_modules": {"action": "extend", "nargs": "+"}}
"""Options of argparse for flags that may be repeated."""
FILES = ("template", "keys_file", "usage_log")
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
    no_model = [""] if not arguments or arguments[0].startswith("-") else []  # otherwise argparse takes a value of vLLM's flags as MODEL
    options, engine_flags = parser.parse_known_args([*no_model, *arguments])
    values: dict[str, Any] = {name: value for name, value in vars(options).items() if value is not None}
    if "api_keys" in values:
        values["api_keys"] = ",".join(values["api_keys"])
    if model := values.pop("MODEL"):
        values["model"] = model
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
        epilog="All other flags go to vLLM unchanged: --dtype, --quantization, --max-model-len, --gpu-memory-utilization, ...\n\n"
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
        group.add_argument(
            f"--{name.replace('_', '-')}",
            *ALIASES.get(name, ()),
            dest=name,
            **REPEATED.get(name, {}),
            metavar=_metavar(name, field.annotation),
            help=f"{field.description}{default}".replace("%", "%%"),
            **options,
        )
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
