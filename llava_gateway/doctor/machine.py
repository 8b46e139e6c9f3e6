"""Checks of the machine: Python, CPU, memory, GPUs and variables. Nothing here imports PyTorch in this process."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from llava_gateway.doctor.finding import Finding
from llava_gateway.doctor.repair import run_error
from llava_gateway.memory.machine import Machine, cpu_features, read_machine

MIN_PYTHON = (3, 11)
MIN_MEMORY = 2 << 30
"""Bytes of free memory below which even the demo model may not start. Its processes take 1.4 GiB (docs/performance.md)."""
CPU_FEATURES = {"amx_tile": "AMX", "avx512_bf16": "AVX-512 with BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""The instructions for which vLLM has kernels on x86-64, the fastest first, by their names in /proc/cpuinfo."""
DRIVER = Path("/proc/driver/nvidia/version")
USE_GPU = "import torch; torch.zeros(1, device='cuda')"


def check_machine(cpu_build: bool | None) -> Iterator[Finding]:
    """Yield the findings about this machine. `cpu_build`: whether vLLM is built for CPUs. None: it is not installed."""
    yield check_python()
    machine = read_machine(cpu_build=False)
    yield check_cpu(cpu_features(Path("/")), cpu_build=cpu_build is True)
    yield check_memory(machine.cpu_memory, machine.cpu_free)
    yield check_gpus(machine, cpu_build, _driver(DRIVER))
    yield from check_variables()


def check_python() -> Finding:
    """Return whether this Python and this system are supported."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, in {sys.prefix}"
    if sys.version_info < MIN_PYTHON:
        return Finding("Python", "fault", text, "use Python 3.11 or newer")
    if sys.platform != "linux":
        return Finding("Python", "fault", text, "vLLM runs on Linux; use a container or a virtual machine with Linux")
    return Finding("Python", "ok", text)


def check_cpu(flags: set[str], *, cpu_build: bool) -> Finding:
    """Return what the CPU has for vLLM. `flags`: of /proc/cpuinfo. `cpu_build`: the CPU runs the model."""
    cores = len(os.sched_getaffinity(0))
    found = [name for flag, name in CPU_FEATURES.items() if flag in flags]
    text = f"{cores} core{'s' * (cores > 1)}" + (f", {found[0]}" if found else "")
    if cpu_build and platform.machine() == "x86_64":
        if not found:
            return Finding("CPU", "fault", f"{text}, without AVX2", "use a CPU with AVX2, or a machine with an NVIDIA GPU")
        if found == ["AVX2"]:
            return Finding("CPU", "note", f"{text}; models run faster on a CPU with AVX-512")
    return Finding("CPU", "ok", text)


def check_memory(total: int, free: int) -> Finding:
    """Return whether the memory suffices. `total`, `free`: in bytes, with the limits of containers."""
    text = f"{total / 1e9:.1f} GB, of which {free / 1e9:.1f} GB are free"
    if free < MIN_MEMORY:
        return Finding("memory", "note", text, "free some memory; vLLM and torch alone take 1.5 GB")
    return Finding("memory", "ok", text)


def check_gpus(machine: Machine, cpu_build: bool | None, driver: str) -> Finding:
    """Return whether vLLM can use the GPUs. `driver`: its version, or empty if there is none."""
    if not machine.gpus:
        if cpu_build is False:
            text = "none that this process may use, and this vLLM is built for NVIDIA GPUs"
            return Finding("GPU", "fault", text, "install the driver, or llava-gateway[cpu] in another environment")
        return Finding("GPU", "ok", "none; the CPU runs the models")
    names = ", ".join(f"{gpu.name} with {gpu.memory / 1e9:.1f} GB" for gpu in machine.gpus)
    text = f"{names}, driver {driver or 'unknown'}"
    if cpu_build:
        return Finding("GPU", "note", f"{text}; this vLLM is built for CPUs", "install llava-gateway[cuda] in another environment")
    if cpu_build is False and (error := run_error(USE_GPU)):
        return Finding("GPU", "fault", f"{text}; torch cannot use it: {error.splitlines()[-1]}", "install a newer driver")
    return Finding("GPU", "ok", text)


def check_variables() -> Iterator[Finding]:
    """Yield the findings about variables of the environment that change the engine's speed."""
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and not 0 < int(threads) <= cores:
        remedy = "unset it; the gateway then leaves one core to itself"
        yield Finding("threads", "note", f"OMP_NUM_THREADS is {threads}, and this process has {cores} cores", remedy)
    elif threads:
        yield Finding("threads", "ok", f"OMP_NUM_THREADS is {threads}")
    libraries = re.split("[: ]", os.environ.get("LD_PRELOAD", ""))
    if missing := [path for path in libraries if "/" in path and not Path(path).exists()]:
        yield Finding("preload", "note", f"LD_PRELOAD names {', '.join(missing)}, which is not there", "remove it from LD_PRELOAD")


def _driver(file: Path) -> str:
    """Return the version of the NVIDIA driver. Empty if it is not loaded."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", file.read_text())
    except OSError:
        return ""
    return found[1] if found else ""
