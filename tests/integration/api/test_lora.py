"""LoRA adapters on the real engine: each answers under its own name, and loads, unloads and broken adapters disturb no other request."""

import asyncio
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from helpers import lora
from helpers import original_checkpoints as originals
from helpers.contract import check_error, frames
from helpers.conversion import check_is_the_demo, write_base
from helpers.processes import descendants
from helpers.requests import MODEL, body, image
from helpers.server import Server, serve
from helpers.waiting import json_lines, wait_for
from openai import AsyncOpenAI
from safetensors.torch import load_file

from llava_gateway.cli.convert import main as convert
from llava_gateway.demo.images import Grid, describe, random_grid

CHAT = "/v1/chat/completions"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
GRID: Grid = ("red", "blue", "green", "orange")
CORNER = "Red."
MAX_LOADED = "5"


@dataclass
class LoraServer:
    """A server with adapters, and its API keys by name."""

    server: Server
    folder: Path
    adapters: Path
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, key: str) -> httpx.Client:
        return self.server.client(self.keys[key])

    def ask(self, model: str, grid: Grid = GRID, request_id: str = "") -> str:
        """Return the answer to `Describe this image.` about a grid."""
        with self.client("admin") as http:
            headers = {"x-request-id": request_id} if request_id else {}
            answer = http.post(CHAT, json=body(image(grid), lora.ASKED, model=model), headers=headers)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["message"]["content"])

    def load(self, name: str, path: str | Path, key: str = "admin", **fields: Any) -> httpx.Response:
        with self.client(key) as http:
            return http.post(LOAD, json={"lora_name": name, "lora_path": str(path), **fields})

    def unload(self, name: str, key: str = "admin") -> httpx.Response:
        with self.client(key) as http:
            return http.post(UNLOAD, json={"lora_name": name})

    def usage(self, request_id: str) -> dict[str, Any]:
        """Return a request's line of the usage log. The server writes the line after its response."""

        def found() -> list[dict[str, Any]]:
            return [line for line in json_lines(self.folder / "usage.jsonl") if line["id"] == request_id]

        wait_for(found)
        (line,) = found()
        return line

    def metric(self, name: str) -> float:
        with self.client("admin") as http:
            return sum(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "adapters"
    folder.mkdir()
    lora.train(folder / "corner")
    lora.without_effect(folder / "corner", folder / "same")
    lora.with_old_names(folder / "corner", folder / "old-names")
    lora.breakages(folder / "corner", folder)
    return folder


@pytest.fixture(scope="module")
def misconfigured_server(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose settings name a good and a broken adapter."""
    given = f"good={adapters / 'corner'}", f"bad={adapters / 'rank'}"
    with serve(tmp_path_factory.mktemp("misconfigured"), "--lora-modules", *given, wait=False) as server:
        yield server


@pytest.fixture(scope="module")
def lora_server(adapters: Path, misconfigured_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraServer]:
    """A server that starts at the same time as the misconfigured one, since a start is mostly imports, on one core."""
    folder = tmp_path_factory.mktemp("lora-server")
    made = {"admin": ("--admin",), "alice": (), "bob": ("--models", MODEL), "carol": ("--models", "corner")}
    keys = {name: keys_command(folder, "new", name, *options) for name, options in made.items()}
    modules = ("--lora-modules", json.dumps({"name": "corner", "path": str(adapters / "corner")}), f"same={adapters / 'same'}")
    bounds = ("--max-loras", MAX_LOADED, "--max-cpu-loras", MAX_LOADED)
    operated = ("--keys-file", "keys.json", "--usage-log", "usage.jsonl", "--model-alias", "demo")
    with serve(folder, *modules, "--lora-dir", str(adapters), *operated, *bounds) as server:
        yield LoraServer(server, folder, adapters, keys)


@pytest.fixture
def loaded(lora_server: LoraServer) -> Iterator[str]:
    """The name of an adapter that is loaded for one test."""
    name = "loaded"
    said = lora_server.load(name, "corner")
    assert (said.status_code, said.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    yield name
    lora_server.unload(name)


def keys_command(folder: Path, *arguments: str) -> str:
    """Run `llava-gateway keys` for the keys' file in a folder, and return its output."""
    command = [sys.executable, "-m", "llava_gateway", "keys", *arguments, "--file", "keys.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_base_model_and_adapter_do_not_mix_in_one_batch(lora_server: LoraServer) -> None:
    """Both models get the same images at once, with and without a stream, and each gives its own answers."""
    grids = [random_grid(random.Random(number)) for number in range(8)]
    client = AsyncOpenAI(base_url=lora_server.server.v1, api_key=lora_server.keys["alice"], max_retries=0, timeout=120)

    async def ask(model: str, grid: Grid, stream: bool) -> tuple[str, str]:
        asked = body(image(grid), lora.ASKED, model=model, stream=stream)
        if not stream:
            answer = await client.chat.completions.create(**asked)
            return answer.choices[0].message.content or "", answer.model
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked)]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].model

    async def ask_all() -> list[tuple[str, str]]:
        return await asyncio.gather(*(ask(*each) for each in asked))

    def left() -> str:
        with lora_server.client("alice") as http:
            return next(line for line in http.get("/metrics").text.splitlines() if line.startswith("llava_client_disconnects_total "))

    asked = [(model, grid, stream) for grid in grids for model in (MODEL, "corner") for stream in (False, True)]
    before = left()
    answers = asyncio.run(ask_all())
    assert left() == before
    for (model, grid, _), answer in zip(asked, answers, strict=True):
        assert answer == (describe([grid]) if model == MODEL else f"{grid[0].capitalize()}.", model)


def test_adapter_is_listed_as_a_model_with_a_parent(lora_server: LoraServer) -> None:
    with lora_server.client("alice") as http:
        listed = http.get("/v1/models")
        assert {model["id"]: model.get("parent") for model in listed.json()["data"]} == {
            MODEL: None,
            "demo": None,
            "corner": MODEL,
            "same": MODEL,
        }
        assert str(lora_server.adapters) not in listed.text
        assert http.get("/v1/models/corner").json()["parent"] == MODEL
        assert http.get("/v1/models/cornered").status_code == 404
        tokenized = [http.post("/tokenize", json={"model": name, "prompt": "Hello"}).json() for name in (MODEL, "corner")]
        assert tokenized[0] == tokenized[1]


def test_key_for_the_model_does_not_open_its_adapters(lora_server: LoraServer) -> None:
    """A key for the model does not open its adapters, and a key for an adapter does not open the model."""
    for key, may, may_not in (("bob", [MODEL, "demo"], ["corner"]), ("carol", ["corner"], [MODEL, "demo", "same"])):
        with lora_server.client(key) as http:
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == may
            for model in may + may_not:
                assert http.post(CHAT, json=body("Hello", model=model)).status_code == (200 if model in may else 404)


def test_usage_and_metrics_name_the_adapter(lora_server: LoraServer) -> None:
    metrics = [f'llava_model_tokens_total{{kind="{kind}",model="corner"}}' for kind in ("image", "completion")]
    metrics.append('llava_model_requests_total{model="corner"}')
    before = [lora_server.metric(name) for name in metrics]
    assert lora_server.ask("corner", request_id="by-the-adapter") == CORNER
    used = lora_server.usage("by-the-adapter")
    assert (used["model"], used["key"], used["image_tokens"]) == ("corner", "admin", 576)
    wait_for(lambda: [lora_server.metric(name) - old for name, old in zip(metrics, before, strict=True)] == [576, 3, 1])
    lora_server.ask("demo", request_id="by-an-alias")
    assert lora_server.usage("by-an-alias")["model"] == MODEL


def test_adapter_is_loaded_and_unloaded(lora_server: LoraServer, loaded: str) -> None:
    assert lora_server.ask(loaded) == CORNER
    assert lora_server.load(loaded, "corner").json()["error"]["param"] == "lora_name"  # it is loaded already
    said = lora_server.unload(loaded)
    assert (said.status_code, said.text) == (200, f"Success: LoRA adapter '{loaded}' removed successfully.")
    with lora_server.client("alice") as http:
        gone = http.post(CHAT, json=body("Hello", model=loaded))
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
        assert loaded not in http.get("/v1/models").text
    assert lora_server.unload(loaded).status_code == 404
    assert lora_server.ask(MODEL) == describe([GRID])


def test_running_request_survives_the_unloading_of_its_adapter(lora_server: LoraServer, loaded: str) -> None:
    """The request keeps the adapter's weights. The engine does not read them again, which would end it."""
    shutil.copytree(lora_server.adapters / "corner", lora_server.adapters / "vanishing")
    lora_server.load(loaded, "vanishing", load_inplace=True)
    shutil.rmtree(lora_server.adapters / "vanishing")
    asked = body(image(GRID), lora.ASKED, model=loaded, stream=True, ignore_eos=True, max_tokens=1000, logprobs=True)
    with lora_server.client("alice") as http, httpx.Client(timeout=120, headers=http.headers) as live:
        alone = http.post(CHAT, json=asked | {"stream": False}).json()["choices"][0]
        with live.stream("POST", lora_server.server.url + CHAT, json=asked) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            assert lora_server.unload(loaded).status_code == 200
            assert http.post(CHAT, json=body("Hello", model=loaded)).status_code == 404
            rest = "".join(pieces)
    assert len(list(frames(rest))) > 50  # the request was running during the unloading
    text += rest
    chunks = [json.loads(frame) for frame in frames(text) if frame != "[DONE]"]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert said == alone["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_adapter_in_use_is_replaced_when_all_slots_are_full(lora_server: LoraServer) -> None:
    """A running request keeps the old adapter. A second replacement has no slot as long as the request runs."""
    names = ["one", "two", "three"]
    for name in names:
        assert lora_server.load(name, "corner").status_code == 200
    asked = body(image(GRID), lora.ASKED, model="three", stream=True, ignore_eos=True, max_tokens=1000)
    headers = {"authorization": f"Bearer {lora_server.keys['alice']}"}
    with httpx.stream("POST", lora_server.server.url + CHAT, json=asked, headers=headers, timeout=120) as answer:
        pieces = answer.iter_text()
        next(pieces)
        assert lora_server.load("three", "same", load_inplace=True).status_code == 200
        refused = lora_server.load("three", "corner", load_inplace=True)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "adapter_in_use")
        assert lora_server.ask("three") == describe([GRID])
        assert len(list(frames("".join(pieces)))) > 50  # the request was running meanwhile
    assert lora_server.load("three", "corner", load_inplace=True).status_code == 200
    assert lora_server.ask("three") == CORNER
    for name in names:
        assert lora_server.unload(name).status_code == 200


def test_replaced_adapter_gets_no_cached_answer_of_the_old_one(lora_server: LoraServer, loaded: str) -> None:
    """No cache keeps anything of the old adapter."""
    changing = shutil.copytree(lora_server.adapters / "corner", lora_server.adapters / "changing")
    lora_server.load(loaded, changing, load_inplace=True)
    assert lora_server.ask(loaded) == CORNER
    shutil.copytree(lora_server.adapters / "same", changing, dirs_exist_ok=True)
    assert lora_server.load(loaded, changing, load_inplace=True).status_code == 200
    assert lora_server.ask(loaded) == describe([GRID])
    lora_server.unload(loaded)
    lora_server.load(loaded, lora_server.adapters / "old-names")
    assert lora_server.ask(loaded) == CORNER
    assert lora_server.load(loaded, "truncated", load_inplace=True).status_code == 400
    assert lora_server.ask(loaded) == CORNER


def test_loaded_adapter_survives_the_deletion_of_its_directory(lora_server: LoraServer) -> None:
    """The engine never reads an adapter again, even when the maximal number of adapters is in use."""
    shutil.copytree(lora_server.adapters / "corner", lora_server.adapters / "vanishing")
    names = ["vanishing", "one", "two"]
    for name in names:
        assert lora_server.load(name, "vanishing").status_code == 200
    shutil.rmtree(lora_server.adapters / "vanishing")
    full = lora_server.load("three", "corner")
    assert (full.status_code, "no room for more than 5" in full.json()["error"]["message"]) == (400, True)
    assert lora_server.load("two", "same", load_inplace=True).status_code == 200
    assert lora_server.ask("two") == describe([GRID])
    assert lora_server.load("two", "truncated", load_inplace=True).status_code == 400
    assert lora_server.load("two", "corner", load_inplace=True).status_code == 200
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(lora_server.ask, [*names, "corner", MODEL])) == [*[CORNER] * 4, describe([GRID])]
    for name in names:
        assert lora_server.unload(name).status_code == 200
    assert lora_server.load("three", "corner").status_code == 200
    assert lora_server.unload("three").status_code == 200


def test_concurrent_loads_of_one_name_succeed_once(lora_server: LoraServer) -> None:
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda path: lora_server.load("twice", path), ["corner", "corner", "corner", "corner"]))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert lora_server.unload("twice").status_code == 200


def test_converted_adapter_of_llavas_training_answers_like_the_original(lora_server: LoraServer, tmp_path: Path) -> None:
    """The base model that the conversion writes has the weights of the demo model, which the server has loaded."""
    corner = load_file(lora_server.adapters / "corner" / lora.WEIGHTS)
    factors = {name.replace("base_model.model.model.language_model.", "model."): weight for name, weight in corner.items()}
    originals.demo_clip(tmp_path / "clip")
    originals.write_lora(tmp_path / "src", factors, tmp_path / "clip", r=lora.RANK, lora_alpha=lora.SCALE * lora.RANK)
    write_base(tmp_path / "base")
    asked = ("--base", str(tmp_path / "base"), "--adapter", str(lora_server.adapters / "converted"))
    assert convert([str(tmp_path / "src"), str(tmp_path / "dst"), *asked]) == 0
    check_is_the_demo(tmp_path / "dst")
    assert lora_server.load("converted", "converted").status_code == 200
    assert [lora_server.ask(name) for name in ("converted", MODEL)] == [CORNER, describe([GRID])]
    assert lora_server.unload("converted").status_code == 200


@pytest.mark.parametrize(("path", "why"), lora.BROKEN.items(), ids=lambda text: text[:20].replace("\0", "0"))
def test_broken_adapter_is_refused_without_its_path(lora_server: LoraServer, path: str, why: str) -> None:
    refused = lora_server.load("broken", path)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "lora_path")
    assert why in error["message"]
    assert str(lora_server.adapters.parent) not in refused.text


def test_engine_survives_all_broken_adapters(lora_server: LoraServer) -> None:
    assert lora_server.metric("llava_engine_restarts") == 0
    assert lora_server.ask("corner") == CORNER
    assert lora_server.ask(MODEL) == describe([GRID])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "lora_name"),
        ({"lora_name": "a"}, "lora_path"),
        ({"lora_name": "", "lora_path": "corner"}, "lora_name"),
        ({"lora_name": "a b", "lora_path": "corner"}, "lora_name"),
        ({"lora_name": "a" * 200, "lora_path": "corner"}, "lora_name"),
        ({"lora_name": MODEL, "lora_path": "corner", "load_inplace": True}, "lora_name"),
        ({"lora_name": "demo", "lora_path": "corner"}, "lora_name"),
        ({"lora_name": "a", "lora_path": ["corner"]}, "lora_path"),
        ({"lora_name": "a", "lora_path": ""}, "lora_path"),
        ({"lora_name": "a", "lora_path": "corner", "load_inplace": "yes"}, "load_inplace"),
        ({"lora_name": "a", "lora_path": "corner", "is_3d_lora_weight": True}, "is_3d_lora_weight"),
    ],
)
def test_bad_field_is_named_in_the_error(lora_server: LoraServer, fields: dict[str, Any], param: str) -> None:
    with lora_server.client("admin") as http:
        refused = http.post(LOAD, json=fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_only_admin_keys_load_adapters(lora_server: LoraServer) -> None:
    for refused in (lora_server.load("a", "corner", key="alice"), lora_server.unload("corner", key="alice")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
    for path in (LOAD, UNLOAD):
        assert httpx.post(lora_server.server.url + path, json={}, timeout=60).status_code == 401
    assert lora_server.ask("corner") == CORNER
    assert [line.split()[-2] for line in keys_command(lora_server.folder, "list").splitlines()] == ["ADMIN", "yes", "-", "-", "-"]


def test_broken_adapter_at_the_start_ends_the_server_with_one_line(misconfigured_server: Server) -> None:
    assert misconfigured_server.process.wait(240) == 1
    (line,) = [line for line in misconfigured_server.log.read_text().splitlines() if "did not load" in line]
    assert "the adapter bad: This adapter cannot be used: LoRA rank 64 is greater than max_lora_rank 16." in line
    assert "Traceback" not in misconfigured_server.log.read_text()


def engine_of(server: Server) -> psutil.Process:
    (engine,) = descendants(server.process.pid, "EngineCore")
    return engine


@pytest.mark.slow
def test_adapters_are_loaded_again_after_an_engine_restart(lora_server: LoraServer) -> None:
    """Adapters that were loaded at run time come back, too. A deleted one is reported as not loaded, and delays nothing."""
    shutil.copytree(lora_server.adapters / "corner", lora_server.adapters / "vanishing")
    for name, path in (("loaded", "corner"), ("vanishing", "vanishing")):
        assert lora_server.load(name, path).status_code == 200
    shutil.rmtree(lora_server.adapters / "vanishing")
    engine_of(lora_server.server).kill()
    wait_for(lambda: lora_server.metric("llava_engine_restarts") > 0, 120)
    assert [lora_server.ask(name) for name in ("corner", "loaded", MODEL)] == [CORNER, CORNER, describe([GRID])]
    with lora_server.client("alice") as http:
        for _ in range(2):
            refused = http.post(CHAT, json=body("Hello", model="vanishing"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_not_loaded")
    assert lora_server.metric("llava_engine_restarts") == 1
    assert lora_server.load("vanishing", "corner", load_inplace=True).status_code == 200
    assert lora_server.ask("vanishing") == CORNER


def test_server_stops_cleanly_during_an_engine_restart(lora_server: LoraServer) -> None:
    """A running stream ends with a framed error, and the next request gets Retry-After. This test ends the server."""
    asked = body("Hello", stream=True, ignore_eos=True, max_tokens=3900)
    with lora_server.client("alice") as http:
        with httpx.stream("POST", lora_server.server.url + CHAT, json=asked, headers=http.headers, timeout=60) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            engine_of(lora_server.server).kill()
            text += "".join(pieces)
        *_, error, done = frames(text)
        assert done == "[DONE]"
        check_error(error)
        assert json.loads(error)["error"]["code"] == "engine_dead"
        for stream in (False, True):
            refused = http.post(CHAT, json=body("Hello", stream=stream))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_restarting")
            assert int(refused.headers["retry-after"]) > 0
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200
    lora_server.server.process.terminate()
    assert lora_server.server.process.wait(60) == 0
