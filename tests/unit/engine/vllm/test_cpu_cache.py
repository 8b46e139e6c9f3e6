"""The KV cache on a CPU leaves memory to other programs, and has room for a request of full context."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm import launch
from llava_gateway.engine.vllm.compat import launch as compat
from llava_gateway.errors import EngineStartError
from llava_gateway.memory.fit import CPU_CACHE, cpu_cache_bytes
from llava_gateway.memory.models import find_model

pytestmark = pytest.mark.slow


def configuration(*flags: str) -> Any:
    return compat.create_config(launch.engine_arguments(str(CHECKPOINT), flags))


def have_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(compat, "free_cpu_memory", lambda: free)


@pytest.mark.parametrize(
    ("flags", "factor"), [(["--dtype", "bfloat16"], 1), (["--dtype", "float32"], 2), (["--kv-cache-dtype", "fp8"], 0.5)]
)
def test_request_of_full_context_has_room(flags: list[str], factor: float) -> None:
    """The table has the size of a token with 16 bits. vLLM allots whole blocks, and keeps one for itself."""
    demo = find_model("llava-demo")
    assert demo
    assert compat.request_cache_bytes(configuration("--block-size", "128", *flags)) == (4096 + 128) * demo.kv_bytes * factor
    assert (
        compat.request_cache_bytes(configuration("--block-size", "128", "--max-model-len", "1000", *flags)) == 1152 * demo.kv_bytes * factor
    )


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_cache_is_bounded_and_never_too_small(request: int, free: int) -> None:
    size = cpu_cache_bytes(request, free)
    assert size >= request
    assert size == request or size <= min(CPU_CACHE, free / 4)


def test_cache_takes_a_part_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own default takes all but 8 % of the memory, and it does not start if other programs use more than that."""
    config = configuration()
    have_free(monkeypatch, 4 << 30)
    launch._bound_cpu_cache(config)
    assert config.cache_config.kv_cache_memory_bytes == 1 << 30


@pytest.mark.parametrize("flags", [["--kv-cache-memory-bytes", "64M"], ["--gpu-memory-utilization", "0.5"]])
def test_operators_choice_stays(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    config = configuration(*flags)
    before = config.cache_config.kv_cache_memory_bytes
    have_free(monkeypatch, 4 << 30)
    launch._bound_cpu_cache(config)
    assert config.cache_config.kv_cache_memory_bytes == before


def test_variable_of_vllm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    config = configuration()
    have_free(monkeypatch, 1 << 30)
    launch._bound_cpu_cache(config)
    assert config.cache_config.kv_cache_memory_bytes == 2 << 30


def test_context_without_room_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    have_free(monkeypatch, 1 << 20)
    with pytest.raises(EngineStartError, match=r"^one request of 4096 tokens needs .* GB .*; choose a smaller --max-model-len$"):
        launch._bound_cpu_cache(configuration())
