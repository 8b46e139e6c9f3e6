"""Command-line flags from a settings class: one per field, `--max-body-mb` for `max_body_mb`. What is not ours is left for the engine."""

import argparse
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from llava_gateway.settings import Settings, default_of

ALIASES = {"api_keys": ("--api-key",)}


def parse(arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """Settings, and the flags that are vLLM's. Exits with one line if a value is wrong."""
    parser = _parser()
    arguments = list(arguments)
    model = [arguments.pop(0)] if arguments and not arguments[0].startswith("-") else []
    given, engine_flags = parser.parse_known_args(arguments)
    values: dict[str, Any] = {name: value for name, value in vars(given).items() if value is not None}
    if "api_keys" in values:
        values["api_keys"] = ",".join(values["api_keys"])
    if model:
        values["model"] = model[0]
    try:
        return Settings(**values), engine_flags
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(step) for step in first["loc"][:1])
        parser.exit(2, f"llava-gateway: {name} (--{name.replace('_', '-')} or LLAVA_{name.upper()}): {first['msg']}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-gateway serve",
        usage="llava-gateway serve [MODEL] [flags] [any vLLM engine flag]",
        description="Serve a LLaVA over the OpenAI API. Each flag is also an environment variable (LLAVA_PORT) and a key of "
        "llava-gateway.toml. All other flags go to vLLM: --dtype, --quantization, --max-model-len, --tensor-parallel-size, ...",
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        default = f" (default: {default_of(name)})" if default_of(name) else ""
        help_text = f"{field.description}{default}".replace("%", "%%")
        names = [f"--{name.replace('_', '-')}", *ALIASES.get(name, ())]
        action = "append" if name == "api_keys" else "store"
        parser.add_argument(*names, dest=name, action=action, metavar="VALUE", help=help_text)
    return parser
