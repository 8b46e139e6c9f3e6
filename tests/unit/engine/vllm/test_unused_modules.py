"""The modules that vLLM does not get on a CPU, and the flags with which it gets them."""

import importlib
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from llava_gateway.demo import ENGINE_FLAGS
from llava_gateway.engine.vllm import unused_modules as module
from llava_gateway.engine.vllm.unused_modules import unused_modules, without_modules

PLAIN = (*ENGINE_FLAGS, "--max-model-len", "2048", "--dtype=float32", "--enable-lora", "--max-lora-rank", "32", "--max-num-seqs", "-1")
SPECIAL = (
    *("--distributed-executor-backend=ray", "--data_parallel_backend", "--tensor-parallel-size", "-tp", "-dp=2", "--nnodes", "--config"),
    *("--numa-bind", "--worker-cls", "--attention-backend=TRITON_ATTN", "--otlp-traces-endpoint", "-cc", "--kv-transfer-config"),
    "--trust-remote-code",
)


@pytest.fixture(autouse=True)
def cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_cpu_build", lambda: True)
    monkeypatch.setattr(module, "entry_points", lambda group: [])
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in ("OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_plain_engine_on_a_cpu_needs_none_of_them() -> None:
    assert unused_modules(PLAIN) == ["ray", "triton", "grpc"]


@pytest.mark.parametrize("flag", SPECIAL)
def test_flags_that_may_need_ray_triton_or_grpc_get_them(flag: str) -> None:
    assert unused_modules([*PLAIN, flag]) == []


def test_vllm_for_gpus_gets_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_cpu_build", lambda: False)
    assert unused_modules([]) == []


def test_program_that_uses_ray_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    assert unused_modules([]) == []


def install(monkeypatch: pytest.MonkeyPatch, **entry: str) -> None:
    """Stand for a package with one entry point."""
    installed = EntryPoints([EntryPoint(**entry)])
    monkeypatch.setattr(module, "entry_points", lambda group: installed.select(group=group))


def test_triton_with_a_backend_for_cpus_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, group="triton.backends", name="cpu", value="triton.backends.cpu")
    assert unused_modules([]) == ["ray", "grpc"]


@pytest.mark.parametrize(("value", "plain"), [("vllm.plugins.lora_resolvers:register", True), ("other_package:register", False)])
def test_plugin_of_another_package_gets_all_of_them(monkeypatch: pytest.MonkeyPatch, value: str, plain: bool) -> None:
    """Its code runs in both processes at the start, and may need any of them."""
    install(monkeypatch, group="vllm.general_plugins", name="plugin", value=value)
    assert bool(unused_modules([])) == plain


def test_spans_of_the_environment_keep_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    assert unused_modules([]) == ["ray", "triton"]


def test_module_can_be_imported_again_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with without_modules(["this", "json"]):
        assert importlib.import_module("json")  # imported before, so it stays
        with pytest.raises(ImportError):
            importlib.import_module("this")
    assert importlib.import_module("this")
