"""What a machine has, read from files and programs of other machines."""

from pathlib import Path

import pytest

from llava_gateway.memory.machine import Gpu, Machine, container_limits, has_amx, read_machine, visible_gpus

LISTED = """\
0, GPU-aaaa-1, NVIDIA L4, 23034, 8.9
1, GPU-bbbb-2, Tesla T4, 15360, 7.5
2, GPU-cccc-3, NVIDIA GB10, [N/A], 12.1
"""
L4, T4 = Gpu("NVIDIA L4", 23034 << 20, (8, 9)), Gpu("Tesla T4", 15360 << 20, (7, 5))
PASCAL = Gpu("Tesla P100", 16 << 30, (6, 0))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_limits_of_all_groups_around_the_process_count(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/pod/box/memory.max": "max\n", "sys/fs/cgroup/pod/memory.max": "4096\n"}
    assert list(container_limits(write(tmp_path, files))) == [4096]


def test_limit_counts_in_a_container_that_sees_the_path_of_its_host(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/host/docker/1\n", "sys/fs/cgroup/memory.max": "8192\n"}
    assert list(container_limits(write(tmp_path, files))) == [8192]


def test_limit_of_the_first_version_of_cgroups_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2048\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert min(container_limits(write(tmp_path, files))) == 2048


def test_group_above_the_mount_is_not_read(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../..\n", "memory.max": "1\n", "sys/memory.max": "1\n"}
    assert list(container_limits(write(tmp_path, files))) == []


def test_machine_without_groups_has_no_limit(tmp_path: Path) -> None:
    assert list(container_limits(tmp_path)) == []


@pytest.mark.parametrize(("flags", "found"), [("fpu amx_bf16 amx_tile amx_int8", True), ("fpu avx512f amx_tiles", False), ("", False)])
def test_amx_is_read_from_the_flags_of_the_cpu(tmp_path: Path, flags: str, found: bool) -> None:
    assert has_amx(write(tmp_path, {"proc/cpuinfo": f"processor : 0\nflags\t\t: {flags}\n"})) is found


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(None, (L4, T4)), ("0,1", (L4, T4)), ("1", (T4,)), ("GPU-aaaa", (L4,)), ("", ()), ("-1", ()), ("MIG-dddd", ())],
)
def test_gpus_that_the_process_may_not_use_are_left_out(visible: str | None, gpus: tuple[Gpu, ...]) -> None:
    assert visible_gpus(LISTED, visible) == gpus


@pytest.mark.parametrize("listed", ["", "No devices were found\n", "0, GPU-1, NVIDIA L4, 23034\n", "0, GPU-1, NVIDIA L4, 23034, ?\n"])
def test_output_that_is_no_list_names_no_gpu(listed: str) -> None:
    assert visible_gpus(listed, None) == ()


def test_gpus_are_not_asked_for_if_vllm_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.memory.machine._nvidia_smi", lambda: pytest.fail("nvidia-smi was started"))
    assert read_machine(cpu_build=True).gpus == ()


def test_missing_nvidia_smi_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_machine(cpu_build=False).gpus == ()


def test_smallest_gpu_decides() -> None:
    machine = Machine("x86_64", 1 << 40, gpus=(L4, T4))
    assert (machine.memory, machine.quantization) == (T4.memory, "fp8_per_tensor")


@pytest.mark.parametrize(
    ("machine", "quantization"),
    [
        (Machine("x86_64", 1, amx=True), "fp8_per_block"),
        (Machine("aarch64", 1), None),
        (Machine("x86_64", 1, amx=True, gpus=(PASCAL, L4)), None),
    ],
)
def test_quantization_depends_on_the_weakest_device(machine: Machine, quantization: str | None) -> None:
    assert machine.quantization == quantization
