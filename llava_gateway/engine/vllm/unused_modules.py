"""The modules that vLLM imports if they are installed and then does not use on a CPU: gRPC, Ray and Triton.

They take a second of CPU time and 110 MB in each process. vLLM starts without each of them if it cannot be imported.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points

from llava_gateway.engine.vllm.compat.engine_process import is_cpu_build

SPECIAL_FLAGS = re.compile(r"ray|triton|parallel|executor|worker|node|numa|config|otlp|remote|^-[a-z]", re.IGNORECASE)
"""Flags, or values, with which vLLM may need further processes or one of these modules. All short flags are among them."""
PLUGINS = "vllm.general_plugins", "vllm.platform_plugins"
"""The entry points of packages whose code vLLM runs in both processes at the start."""


def is_plain(flags: Sequence[str]) -> bool:
    """Return whether vLLM runs one engine on a CPU, in one process, by its flags as far as they can be read without vLLM.

    A program that has imported Ray may run in Ray's process, so it is not plain. A plugin of vLLM may import what it likes.
    """
    if not is_cpu_build() or sys.modules.get("ray") or any(SPECIAL_FLAGS.search(flag) for flag in flags):
        return False
    return all(plugin.value.startswith("vllm.") for group in PLUGINS for plugin in entry_points(group=group))


def unused_modules(flags: Sequence[str]) -> list[str]:
    """Return the modules that an engine with these flags does not need."""
    if not is_plain(flags):
        return []
    names = ["ray"]
    if "cpu" not in {backend.name for backend in entry_points(group="triton.backends")}:
        names.append("triton")  # without a backend for CPUs, vLLM imports Triton and then disables it
    if not any(name.startswith("OTEL_") for name in os.environ):
        names.append("grpc")  # for vLLM's own spans, which also need the flag --otlp-traces-endpoint
    return names


@contextmanager
def without_modules(names: Sequence[str]) -> Iterator[None]:
    """Within the block, an import of these modules raises ImportError, unless they were imported before."""
    blocked = [name for name in names if name not in sys.modules]
    if "triton" in blocked:
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it would warn that Triton is missing
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type] # importlib's own way to halt an import
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)
