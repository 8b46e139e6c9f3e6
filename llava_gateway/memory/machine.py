"""What this machine has: memory, a kind of CPU, and NVIDIA GPUs. Nothing here imports PyTorch, which would take seconds."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
TIMEOUT = 10
"""Seconds that nvidia-smi may take."""
FP8_CAPABILITY = (7, 5)
"""The compute capability that vLLM requires for weights of 8 bits that it makes while it loads a model."""

MEMINFO = re.compile(r"^(?:Node \d+ )?(\w+(?:\(\w+\))?): +(\d+) kB$", re.MULTILINE)
"""A line of /proc/meminfo, or of a node's meminfo."""
FREE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
"""The lines of meminfo that vLLM adds for the free memory."""
STAT = re.compile(r"^(\w+) (\d+)$", re.MULTILINE)
"""A line of a control group's memory.stat."""
CACHES: tuple[str, ...] = ("active_file", "inactive_file", "slab_reclaimable")
"""The lines of memory.stat with memory that the kernel frees when programs need it."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    memory: int
    """In bytes."""
    capability: tuple[int, int]
    """The compute capability."""


@dataclass(frozen=True)
class Machine:
    """What decides which models fit. The memory counts that the engine uses: of the GPUs, or of the CPU if there is none."""

    architecture: str
    """Such as `x86_64`."""
    cpu_memory: int
    """In bytes. The limit of a container counts. With several nodes of memory (NUMA) it is that of the node on which vLLM runs."""
    cpu_used: int = 0
    """The part of it that programs use, in bytes. The kernel's cache of files does not count."""
    amx: bool = False
    """Whether the CPU multiplies matrices itself (Intel's AMX). vLLM's kernel for FP8 weights needs it."""
    gpus: tuple[Gpu, ...] = ()
    """The GPUs that vLLM may use. Empty if vLLM is built for CPUs."""

    @property
    def cpu_free(self) -> int:
        """The CPU's memory that no program uses, in bytes."""
        return self.cpu_memory - self.cpu_used

    @property
    def memory(self) -> int:
        """The memory of one device, in bytes. If the GPUs differ, it is that of the smallest one."""
        return min((gpu.memory for gpu in self.gpus), default=self.cpu_memory)

    @property
    def device(self) -> str:
        """The device for a message, such as `NVIDIA L4` or `CPU`."""
        return self.gpus[0].name if self.gpus else "CPU"

    @property
    def quantization(self) -> str | None:
        """vLLM's method that makes weights of 8 bits while it loads a model. None: it has none for this device."""
        if self.gpus:
            return "fp8_per_tensor" if all(gpu.capability >= FP8_CAPABILITY for gpu in self.gpus) else None
        return "fp8_per_block" if self.amx else None


def read_machine(*, cpu_build: bool) -> Machine:
    """Return this machine. `cpu_build`: vLLM is built for CPUs, and uses no GPU."""
    memory, used = cpu_memory(Path("/"), min(os.sched_getaffinity(0)))
    return Machine(
        architecture=platform.machine(),
        cpu_memory=memory,
        cpu_used=used,
        amx=has_amx(Path("/")),
        gpus=() if cpu_build else visible_gpus(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES")),
    )


def cpu_memory(root: Path, cpu: int) -> tuple[int, int]:
    """Return the memory of the node of a CPU, and the part that programs use, in bytes. Limits of containers count.

    vLLM takes memory of one node alone: the one of the first CPU that the process may use. A machine without nodes is one node.
    `root`: the root of the file system.
    """
    nodes = sorted((root / f"sys/devices/system/cpu/cpu{cpu}").glob("node[0-9]*"))
    lines = (_read(nodes[0] / "meminfo") if nodes else "") or _read(root / "proc/meminfo")
    sizes = {name: int(size) << 10 for name, size in MEMINFO.findall(lines)}
    total = sizes["MemTotal"]
    free = sum(sizes.get(name, 0) for name in FREE)
    for limit, used in container_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, total - min(free, total)


def container_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit of memory and the use of this process's control group (cgroup(7)) and of those around it, in bytes.

    The kernel's cache of files does not count as used. Groups without a limit are left out. `root`: the root of the file system.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top, name, usage, caches = root / "sys/fs/cgroup", "memory.max", "memory.current", CACHES
        elif "memory" in controllers.split(","):
            top, name, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            caches = tuple(f"total_{name}" for name in CACHES)
        else:
            continue
        group = top / path.strip("/")
        for directory in (group, *group.parents):  # in a container, the path may be the host's, and only `top` exists
            limit = _read(directory / name).strip()
            if limit.isdecimal():  # and not "max"
                used = _read(directory / usage).strip()
                cached = sum(int(size) for name, size in STAT.findall(_read(directory / "memory.stat")) if name in caches)
                yield int(limit), max(0, int(used) - cached) if used.isdecimal() else 0
            if directory == top:
                break


def cpu_features(root: Path) -> set[str]:
    """Return the names of the CPU's features, such as `avx2`, as the kernel lists them. `root`: the root of the file system."""
    return set(next((line for line in _read(root / "proc/cpuinfo").splitlines() if line.startswith("flags")), "").split())


def has_amx(root: Path) -> bool:
    """Return whether the CPU has Intel's AMX. `root`: the root of the file system."""
    return "amx_tile" in cpu_features(root)


def visible_gpus(listed: str, visible: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that a process may use.

    `listed`: the output of nvidia-smi. `visible`: the variable CUDA_VISIBLE_DEVICES, with indices or UUIDs. None: all GPUs.
    """
    names = None if visible is None else [name.strip() for name in visible.split(",")]
    gpus = []
    for line in listed.splitlines():
        try:
            index, uuid, name, memory, capability = (part.strip() for part in line.split(","))
            major, minor = capability.split(".")
            gpu = Gpu(name, int(memory) << 20, (int(major), int(minor)))
        except ValueError:  # GPUs that share the CPU's memory report none
            continue
        if names is None or index in names or any(name and uuid.startswith(name) for name in names):
            gpus.append(gpu)
    return tuple(gpus)


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=TIMEOUT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(file: Path) -> str:
    """Return a file of the kernel. Empty if there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""
