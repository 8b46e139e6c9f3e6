"""Command-line flags from a settings class: one per field, `--max-body-mb` for `max_body_mb`. What is not ours is left for the engine."""

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from llava_gateway.cli.parser import Parser
from llava_gateway.settings import Settings, default_of

ALIASES = {"api_keys": ("--api-key",)}
REPEATED: dict[str, dict[str, Any]] = {"api_keys": {"action": "append"}, "lora_modules": {"action": "extend", "nargs": "+"}}
"""Flags that may come more than once."""
FILES = ("template", "keys_file", "usage_log")
GROUPS = {
    "model": "model",
    "host": "where it listens, and what it speaks",
    "max_running": "limits",
    "max_image_mb": "pictures",
    "engine_timeout": "engine",
    "api_keys": "who may ask",
    "log_level": "logs",
    "feedback_dir": "feedback",
}
"""Titles of the groups of --help, each by the setting that begins it."""


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Settings, and the flags that are vLLM's. Exits with one line if a value is wrong."""
    parser = make_parser()
    unnamed = [""] if not arguments or arguments[0].startswith("-") else []  # else a value of vLLM's flags would be taken for MODEL
    given, engine_flags = parser.parse_known_args([*unnamed, *arguments])
    values: dict[str, Any] = {name: value for name, value in vars(given).items() if value is not None}
    if "api_keys" in values:
        values["api_keys"] = ",".join(values["api_keys"])
    if model := values.pop("MODEL"):
        values["model"] = model
    try:
        return Settings(**values), engine_flags
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(step) for step in first["loc"][:1])
        parser.exit(2, f"llava-gateway: {name} (--{name.replace('_', '-')} or LLAVA_{name.upper()}): {first['msg']}\n")


def make_parser() -> Parser:
    parser = Parser(
        prog="llava-gateway serve",
        usage="llava-gateway serve [MODEL] [flags] [vLLM's flags]",
        description="Serve a LLaVA over the OpenAI API. Each flag is also an environment variable (LLAVA_PORT) and a key of "
        "llava-gateway.toml in the working directory (port). Flags win over the environment, the environment over the file.",
        epilog="All other flags go to vLLM unchanged: --dtype, --quantization, --max-model-len, --gpu-memory-utilization, ...\n\n"
        "examples:\n"
        "  llava-gateway serve llava-demo --port 9000\n"
        "  llava-gateway serve llava-hf/llava-1.5-7b-hf --max-model-len 2048\n"
        "  llava-gateway serve --host 0.0.0.0 --keys-file keys.json",
    )
    parser.add_argument("MODEL", nargs="?", help="the same as --model; comes first")
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
    """What stands for the value: its values, its unit, or its name's last word."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if name == "lora_modules":
        return "NAME=DIR"
    if get_origin(kind) is tuple:
        return "A,B"
    if name in FILES:
        return "FILE"
    return {int: "N", float: "SECONDS"}.get(kind) or name.rpartition("_")[2].upper()
