"""LoRA settings and requests that need no engine."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.contract import check_error
from helpers.documentation import rows
from helpers.requests import MODEL
from helpers.server import ROOT

from llava_gateway.api.lora import LoadRequest, UnloadRequest
from llava_gateway.app import create_app
from llava_gateway.cli import flags
from llava_gateway.engine.vllm.launch import engine_arguments
from llava_gateway.errors import EngineStartError
from llava_gateway.serving.model_registry import adapters_of
from llava_gateway.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("options", "status"), [({}, 503), ({"auth": "none"}, 403), ({"api_keys": ("secret",)}, 403), ({"lora_dir": ""}, 404)]
)
def test_loading_without_a_keys_file_is_for_loopback_only(tmp_path: Path, options: dict[str, Any], status: int) -> None:
    """On loopback each client may load adapters, and gets 503 here because the model is loading. On an open port no client may."""

    (tmp_path / "corner").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "corner" / name).touch()

    async def load() -> httpx.Response:
        app = create_app(Settings(model=MODEL, **{"lora_dir": str(tmp_path), **options}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as http:
            asked = {"lora_name": "corner", "lora_path": "corner"}
            return await http.post("/v1/load_lora_adapter", json=asked, headers={"authorization": "Bearer secret"})

    answer = asyncio.run(load())
    assert answer.status_code == status
    check_error(answer.text)


def test_both_of_vllms_forms_of_lora_modules_are_parsed() -> None:
    given = ("serve", "--lora-modules", "a=/a,b=/b", '{"name": "c", "path": "/c,d", "base_model_name": "x"}', "--lora-modules", "e=/e=")
    settings, rest = flags.parse([*given[1:], "--max-loras", "3"])
    assert rest == ["--max-loras", "3"]
    assert [(each.name, each.path, each.number) for each in adapters_of(settings.lora_modules)] == [
        ("a", "/a", 1),
        ("b", "/b", 2),
        ("c", "/c,d", 3),
        ("e", "/e=", 4),
    ]


@pytest.mark.parametrize(
    "given",
    [
        *("a", "=", "a=", "=/a", "a b=/a"),
        *("{", '{"name": "a"}', '{"name": 1, "path": "/a"}', '{"name": "a", "path": "/a", "rank": 3}', "a=/a,a=/b", f"{MODEL}=/a"),
    ],
)
def test_bad_lora_modules_are_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="lora_modules"):
        create_app(Settings(model=MODEL, lora_modules=given))


def test_documentation_describes_every_field() -> None:
    document = (ROOT / "docs" / "lora.md").read_text()
    for row in (*rows(LoadRequest), *rows(UnloadRequest)):
        assert row in document.splitlines()


@pytest.mark.slow
def test_model_without_lora_support_is_refused(tmp_path: Path) -> None:
    from helpers import tiny_models

    tiny_models.TINY["onevision"](tmp_path / "model")
    with pytest.raises(EngineStartError, match="no LoRA for llava_onevision models"):
        engine_arguments(str(tmp_path / "model"), ["--enable-lora"])
