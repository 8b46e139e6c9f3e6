"""What a machine has, read from files and programs of other machines."""

import os
from pathlib import Path

import pytest
from helpers.waiting import wait_for

from llava_gateway.memory.machine import Gpu, Machine, container_limits, cpu_memory, has_amx, read_machine, visible_gpus

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
    files |= {"sys/fs/cgroup/pod/box/memory.current": "1\n", "sys/fs/cgroup/pod/memory.current": "1324\n"}
    files["sys/fs/cgroup/pod/memory.stat"] = "anon 900\nactive_file 100\ninactive_file 150\nslab_reclaimable 50\nfile 250\n"
    assert list(container_limits(write(tmp_path, files))) == [(4096, 1024)]


def test_limit_counts_in_a_container_that_sees_the_path_of_its_host(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/host/docker/1\n", "sys/fs/cgroup/memory.max": "8192\n"}
    assert list(container_limits(write(tmp_path, files))) == [(8192, 0)]


def test_limit_of_the_first_version_of_cgroups_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2048\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "712\n",
        "sys/fs/cgroup/memory/a/memory.stat": "inactive_file 1\ntotal_active_file 100\ntotal_inactive_file 100\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert min(container_limits(write(tmp_path, files))) == (2048, 512)


def test_group_above_the_mount_is_not_read(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../..\n", "memory.max": "1\n", "sys/memory.max": "1\n"}
    assert list(container_limits(write(tmp_path, files))) == []


def test_machine_without_groups_has_no_limit(tmp_path: Path) -> None:
    assert list(container_limits(tmp_path)) == []


MEMINFO = """\
MemTotal:       4096 kB
MemFree:        1024 kB
Buffers:         100 kB
Active(file):     64 kB
Inactive(file):   32 kB
SReclaimable:     16 kB
HugePages_Total:   0
"""
NODES = {
    "sys/devices/system/cpu/cpu3/node1/meminfo": "".join(f"Node 1 {line}\n" for line in MEMINFO.replace("4096", "2048").splitlines()),
    "proc/meminfo": MEMINFO,
}
FREE = (1024 + 64 + 32 + 16) << 10
LIMITED = {
    "proc/self/cgroup": "0::/box\n",
    "sys/fs/cgroup/box/memory.max": str(1 << 20),
    "sys/fs/cgroup/box/memory.current": str(768 << 10),
}


@pytest.mark.parametrize(
    ("files", "cpu", "total", "free"),
    [
        (NODES, 0, 4096 << 10, FREE),
        (NODES, 3, 2048 << 10, FREE),
        (NODES | LIMITED, 3, 1 << 20, 256 << 10),
        (NODES | LIMITED | {"sys/fs/cgroup/box/memory.current": str(2 << 20)}, 3, 1 << 20, 0),
        (NODES | LIMITED | {"sys/fs/cgroup/box/memory.max": str(1 << 40)}, 0, 4096 << 10, FREE),
    ],
)
def test_memory_is_that_of_the_node_and_of_the_container(tmp_path: Path, files: dict[str, str], cpu: int, total: int, free: int) -> None:
    assert cpu_memory(write(tmp_path, files), cpu) == (total, total - free)


@pytest.mark.slow
def test_memory_is_what_vllm_reads() -> None:
    """With another total, the share of the memory that vLLM gets would be another one."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    def is_equal() -> bool:
        theirs = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
        total, used = cpu_memory(Path("/"), min(os.sched_getaffinity(0)))
        return bool(theirs.total_memory == total and theirs.available_memory <= total - used + total / 10)

    wait_for(is_equal)  # other programs take and free memory, and a virtual machine may get more


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
