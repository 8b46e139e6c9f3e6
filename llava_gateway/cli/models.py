"""`llava-gateway models`: the well-known models, and how this machine can serve them."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from llava_gateway.cli.parser import Parser
from llava_gateway.engine.vllm.checkpoint import SERVED
from llava_gateway.engine.vllm.compat.engine_process import is_cpu_build
from llava_gateway.memory.fit import (
    SCHEMES,
    Fit,
    best_fit,
    gigabytes,
    needed_bytes,
    quantize_command,
    serve_command,
    usable_bytes,
    weight_bytes,
)
from llava_gateway.memory.machine import Machine, read_machine
from llava_gateway.memory.models import MODELS, KnownModel

COLUMNS = ("MODEL", "PARAMETERS", "BITS", "CONTEXT", "MEMORY", "COMMAND")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status. 2: an argument is wrong."""
    options = make_parser().parse_args(arguments)
    machine = read_machine(cpu_build=is_cpu_build())
    models = [model for model in MODELS if model.model_type in SERVED]
    fits = {model: best_fit(model, machine, usable_bytes(machine)) for model in models}
    if options.json:
        described = [_describe(model, fit) for model, fit in fits.items()]
        print(json.dumps({"machine": _describe_machine(machine), "models": described}, indent=2))
    else:
        sys.stdout.write(_table(machine, fits))
    return 0


def _describe_machine(machine: Machine) -> dict[str, Any]:
    gpus = [{"name": gpu.name, "memory": gpu.memory, "capability": f"{gpu.capability[0]}.{gpu.capability[1]}"} for gpu in machine.gpus]
    cpu = {"architecture": machine.architecture, "cpu_memory": machine.cpu_memory, "amx": machine.amx}
    return cpu | {"gpus": gpus, "usable_memory": usable_bytes(machine)}


def _describe(model: KnownModel, fit: Fit | None) -> dict[str, Any]:
    """Return a model for scripts. Sizes are in bytes, and `context` is in tokens."""
    described: dict[str, Any] = {
        "name": model.name,
        "model_type": model.model_type,
        "parameters": model.parameters,
        "weights": {str(bits): weight_bytes(model, bits) for bits in (16, *SCHEMES)},
        "kv_cache_per_token": model.kv_bytes,
        "context": model.context,
        "fits": None,
    }
    if fit:
        memory = needed_bytes(model, fit.bits, fit.context)
        made_by = quantize_command(model.name, fit.bits) if fit.made_first else None
        described["fits"] = {"bits": fit.bits, "context": fit.context, "memory": memory, "checkpoint": made_by}
        described["fits"]["command"] = serve_command(model, fit)
    return described


def _table(machine: Machine, fits: dict[KnownModel, Fit | None]) -> str:
    """Return the text for people: the machine, the models that fit, and the others."""
    gpus = ", ".join(f"{gpu.name} with {gigabytes(gpu.memory)}" for gpu in machine.gpus)
    used = f"{gigabytes(machine.cpu_memory)} of memory" + (f", {gpus}" if gpus else ", no GPU that this vLLM uses")
    lines = [f"This machine: {machine.architecture}, {used}. vLLM uses up to {gigabytes(usable_bytes(machine))} for one model.", ""]
    rows: list[tuple[str, ...]] = [COLUMNS]
    for model, fit in fits.items():
        if fit:
            memory = gigabytes(needed_bytes(model, fit.bits, fit.context))
            bits = f"{fit.bits}*" if fit.made_first else str(fit.bits)
            size = f"{model.parameters / 1e9:.1f} billion" if model.parameters >= 1e8 else f"{model.parameters / 1e6:.1f} million"
            rows.append((model.name, size, bits, str(fit.context), memory, serve_command(model, fit)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if made := [(model, fit) for model, fit in fits.items() if fit and fit.made_first]:
        lines += ["", "* Make this checkpoint first, in another environment with the package llmcompressor:"]
        lines += [f"  {quantize_command(model.name, fit.bits)}" for model, fit in made]
    if others := [model for model, fit in fits.items() if fit is None]:
        lines += ["", "Too large for this machine:"]
        lines += [f"  {model.name}, whose weights have {gigabytes(weight_bytes(model, 4))} at 4 bits" for model in others]
    return "\n".join(lines) + "\n"


def make_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="llava-gateway models",
        description="List well-known models, and the command with which this machine can serve each. MEMORY is calculated: weights, KV "
        "cache for one request of full CONTEXT, and 1.5 GB for the engine. BITS are those of the language model's weights. With several "
        "GPUs it is the memory of one.",
        epilog="examples:\n  llava-gateway models\n  llava-gateway models --json | jq -r '.models[] | select(.fits) | .fits.command'",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with sizes in bytes")
    return parser
