"""LoRA adapters on the real engine: each answers under its own name, and loads, unloads and broken adapters disturb no other request."""

import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from helpers import lora
from helpers.contract import ContractTransport, check_error, frames
from helpers.requests import MODEL, body, image
from helpers.server import Server, serve
from helpers.waiting import wait_for
from openai import AsyncOpenAI

from llava_gateway.demo.images import Grid, describe, random_grid

CHAT = "/v1/chat/completions"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
GRID: Grid = ("red", "blue", "green", "orange")
CORNER = "Red."
MAX_LOADED = "5"


@dataclass
class Adapted:
    server: Server
    folder: Path
    adapters: Path
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, key: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[key]}"}
        return httpx.Client(base_url=self.server.url, transport=ContractTransport(), timeout=120, headers=headers)

    def ask(self, model: str, grid: Grid = GRID) -> str:
        with self.client("admin") as http:
            answer = http.post(CHAT, json=body(image(grid), lora.ASKED, model=model))
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["message"]["content"])

    def load(self, name: str, path: str | Path, key: str = "admin", **fields: Any) -> httpx.Response:
        with self.client(key) as http:
            return http.post(LOAD, json={"lora_name": name, "lora_path": str(path), **fields})

    def unload(self, name: str, key: str = "admin") -> httpx.Response:
        with self.client(key) as http:
            return http.post(UNLOAD, json={"lora_name": name})

    def usage(self, least: int = 0) -> list[dict[str, Any]]:
        """Lines of the usage log, once there are so many: a request's is written when its answer has left."""
        deadline = time.monotonic() + 10
        while len(lines := (self.folder / "usage.jsonl").read_text().splitlines()) < least:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return [json.loads(line) for line in lines]

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
def misled(adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is to start with a good and a broken adapter."""
    given = f"good={adapters / 'corner'}", f"bad={adapters / 'rank'}"
    with serve(tmp_path_factory.mktemp("misled"), "--lora-modules", *given, wait=False) as server:
        yield server


@pytest.fixture(scope="module")
def adapted(adapters: Path, misled: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    """Starts beside the other, since a start is mostly imports, on one core."""
    folder = tmp_path_factory.mktemp("adapted")
    made = {"admin": ("--admin",), "alice": (), "bob": ("--models", MODEL), "carol": ("--models", "corner")}
    keys = {name: _keys(folder, "new", name, *options) for name, options in made.items()}
    modules = ("--lora-modules", json.dumps({"name": "corner", "path": str(adapters / "corner")}), f"same={adapters / 'same'}")
    bounds = ("--max-loras", MAX_LOADED, "--max-cpu-loras", MAX_LOADED)
    operated = ("--keys-file", "keys.json", "--usage-log", "usage.jsonl", "--model-alias", "demo")
    with serve(folder, *modules, "--lora-dir", str(adapters), *operated, *bounds) as server:
        yield Adapted(server, folder, adapters, keys)


@pytest.fixture
def loaded(adapted: Adapted) -> Iterator[str]:
    """An adapter like the first one, loaded for one test."""
    name = "loaded"
    said = adapted.load(name, "corner")
    assert (said.status_code, said.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    yield name
    adapted.unload(name)


def _keys(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "llava_gateway", "keys", *arguments, "--file", "keys.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_base_model_and_adapter_do_not_mix_in_one_batch(adapted: Adapted) -> None:
    """The same pictures, asked about under both names at once, streamed and not: each answers as its own."""
    grids = [random_grid(random.Random(number)) for number in range(8)]
    client = AsyncOpenAI(base_url=adapted.server.v1, api_key=adapted.keys["alice"], max_retries=0, timeout=120)

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
        with adapted.client("alice") as http:
            return next(line for line in http.get("/metrics").text.splitlines() if line.startswith("llava_client_disconnects_total "))

    asked = [(model, grid, stream) for grid in grids for model in (MODEL, "corner") for stream in (False, True)]
    before = left()
    answers = asyncio.run(ask_all())
    assert left() == before
    for (model, grid, _), answer in zip(asked, answers, strict=True):
        assert answer == (describe([grid]) if model == MODEL else f"{grid[0].capitalize()}.", model)


def test_adapter_is_listed_as_a_model_with_a_parent(adapted: Adapted) -> None:
    with adapted.client("alice") as http:
        listed = http.get("/v1/models")
        assert {model["id"]: model.get("parent") for model in listed.json()["data"]} == {
            MODEL: None,
            "demo": None,
            "corner": MODEL,
            "same": MODEL,
        }
        assert str(adapted.adapters) not in listed.text
        assert http.get("/v1/models/corner").json()["parent"] == MODEL
        assert http.get("/v1/models/cornered").status_code == 404
        tokenized = [http.post("/tokenize", json={"model": name, "prompt": "Hello"}).json() for name in (MODEL, "corner")]
        assert tokenized[0] == tokenized[1]


def test_key_for_the_model_does_not_open_its_adapters(adapted: Adapted) -> None:
    """Whoever may ask for the model may not thereby ask for its adapters, nor the other way round."""
    for key, may, may_not in (("bob", [MODEL, "demo"], ["corner"]), ("carol", ["corner"], [MODEL, "demo", "same"])):
        with adapted.client(key) as http:
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == may
            for model in may + may_not:
                assert http.post(CHAT, json=body("Hello", model=model)).status_code == (200 if model in may else 404)


def test_usage_and_metrics_name_the_adapter(adapted: Adapted) -> None:
    metrics = [f'llava_model_tokens_total{{kind="{kind}",model="corner"}}' for kind in ("image", "completion")]
    metrics.append('llava_model_requests_total{model="corner"}')
    before, lines = [adapted.metric(name) for name in metrics], len(adapted.usage())
    assert adapted.ask("corner") == CORNER
    last = adapted.usage(lines + 1)[-1]
    assert (last["model"], last["key"], last["image_tokens"]) == ("corner", "admin", 576)
    assert [adapted.metric(name) - old for name, old in zip(metrics, before, strict=True)] == [576, 3, 1]
    adapted.ask("demo")
    assert adapted.usage(lines + 2)[-1]["model"] == MODEL


def test_adapter_is_loaded_and_unloaded(adapted: Adapted, loaded: str) -> None:
    assert adapted.ask(loaded) == CORNER
    assert adapted.load(loaded, "corner").json()["error"]["param"] == "lora_name"  # there already
    said = adapted.unload(loaded)
    assert (said.status_code, said.text) == (200, f"Success: LoRA adapter '{loaded}' removed successfully.")
    with adapted.client("alice") as http:
        gone = http.post(CHAT, json=body("Hello", model=loaded))
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
        assert loaded not in http.get("/v1/models").text
    assert adapted.unload(loaded).status_code == 404
    assert adapted.ask(MODEL) == describe([GRID])


def test_running_request_survives_the_unloading_of_its_adapter(adapted: Adapted, loaded: str) -> None:
    """Its weights stay as long as it needs them, and are not read again: that would be the engine's end."""
    shutil.copytree(adapted.adapters / "corner", adapted.adapters / "vanishing")
    adapted.load(loaded, "vanishing", load_inplace=True)
    shutil.rmtree(adapted.adapters / "vanishing")
    asked = body(image(GRID), lora.ASKED, model=loaded, stream=True, ignore_eos=True, max_tokens=200, logprobs=True)
    with adapted.client("alice") as http, httpx.Client(timeout=120, headers=http.headers) as live:
        alone = http.post(CHAT, json=asked | {"stream": False}).json()["choices"][0]
        with live.stream("POST", adapted.server.url + CHAT, json=asked) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            assert adapted.unload(loaded).status_code == 200
            assert http.post(CHAT, json=body("Hello", model=loaded)).status_code == 404
            rest = "".join(pieces)
    assert len(list(frames(rest))) > 50  # so it was at work meanwhile
    text += rest
    chunks = [json.loads(frame) for frame in frames(text) if frame != "[DONE]"]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert said == alone["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_replaced_adapter_gets_no_cached_answer_of_the_old_one(adapted: Adapted, loaded: str) -> None:
    """Nothing that a cache knows of the old one is in the new one's answers."""
    changing = shutil.copytree(adapted.adapters / "corner", adapted.adapters / "changing")
    adapted.load(loaded, changing, load_inplace=True)
    assert adapted.ask(loaded) == CORNER
    shutil.copytree(adapted.adapters / "same", changing, dirs_exist_ok=True)
    assert adapted.load(loaded, changing, load_inplace=True).status_code == 200
    assert adapted.ask(loaded) == describe([GRID])
    adapted.unload(loaded)
    adapted.load(loaded, adapted.adapters / "old-names")
    assert adapted.ask(loaded) == CORNER
    assert adapted.load(loaded, "truncated", load_inplace=True).status_code == 400
    assert adapted.ask(loaded) == CORNER


def test_loaded_adapter_survives_the_deletion_of_its_directory(adapted: Adapted) -> None:
    """The engine never has to read it again, however many others are asked for. With as many as there can be, each still has its own."""
    shutil.copytree(adapted.adapters / "corner", adapted.adapters / "vanishing")
    names = ["vanishing", "one", "two"]
    for name in names:
        assert adapted.load(name, "vanishing").status_code == 200
    shutil.rmtree(adapted.adapters / "vanishing")
    full = adapted.load("three", "corner")
    assert (full.status_code, "no room for more than 5" in full.json()["error"]["message"]) == (400, True)
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(adapted.ask, [*names, "corner", MODEL])) == [*[CORNER] * 4, describe([GRID])]
    for name in names:
        assert adapted.unload(name).status_code == 200
    assert adapted.load("three", "corner").status_code == 200
    assert adapted.unload("three").status_code == 200


def test_concurrent_loads_of_one_name_succeed_once(adapted: Adapted) -> None:
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda path: adapted.load("twice", path), ["corner", "corner", "corner", "corner"]))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert adapted.unload("twice").status_code == 200


@pytest.mark.parametrize(("path", "why"), lora.BROKEN.items(), ids=lambda text: text[:20].replace("\0", "0"))
def test_broken_adapter_is_refused_without_its_path(adapted: Adapted, path: str, why: str) -> None:
    refused = adapted.load("broken", path)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "lora_path")
    assert why in error["message"]
    assert str(adapted.adapters.parent) not in refused.text


def test_engine_survives_all_broken_adapters(adapted: Adapted) -> None:
    assert adapted.metric("llava_engine_restarts") == 0
    assert adapted.ask("corner") == CORNER
    assert adapted.ask(MODEL) == describe([GRID])


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
def test_bad_field_is_named_in_the_error(adapted: Adapted, fields: dict[str, Any], param: str) -> None:
    with adapted.client("admin") as http:
        refused = http.post(LOAD, json=fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_only_admin_keys_load_adapters(adapted: Adapted) -> None:
    for refused in (adapted.load("a", "corner", key="alice"), adapted.unload("corner", key="alice")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
    for path in (LOAD, UNLOAD):
        assert httpx.post(adapted.server.url + path, json={}, timeout=60).status_code == 401
    assert adapted.ask("corner") == CORNER
    listed = subprocess.run(
        [sys.executable, "-m", "llava_gateway", "keys", "list", "--file", "keys.json"], cwd=adapted.folder, capture_output=True, text=True
    )
    assert [line.split()[-2] for line in listed.stdout.splitlines()] == ["ADMIN", "yes", "-", "-", "-"]


def test_broken_adapter_at_the_start_ends_the_server_with_one_line(misled: Server) -> None:
    assert misled.process.wait(120) == 1
    (line,) = [line for line in misled.log.read_text().splitlines() if "did not load" in line]
    assert "the adapter bad: This adapter cannot be used: LoRA rank 64 is greater than max_lora_rank 16." in line
    assert "Traceback" not in misled.log.read_text()


def engine_of(server: Server) -> psutil.Process:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(child for child in children if "EngineCore" in " ".join(child.cmdline()) + child.name())


def test_adapters_are_loaded_again_after_an_engine_restart(adapted: Adapted) -> None:
    """Those that were loaded while it ran, too. One that is gone by then is not answered for, and holds nothing up."""
    shutil.copytree(adapted.adapters / "corner", adapted.adapters / "vanishing")
    for name, path in (("loaded", "corner"), ("vanishing", "vanishing")):
        assert adapted.load(name, path).status_code == 200
    shutil.rmtree(adapted.adapters / "vanishing")
    engine_of(adapted.server).kill()
    wait_for(lambda: adapted.metric("llava_engine_restarts") > 0, 120)
    assert [adapted.ask(name) for name in ("corner", "loaded", MODEL)] == [CORNER, CORNER, describe([GRID])]
    with adapted.client("alice") as http:
        for _ in range(2):
            refused = http.post(CHAT, json=body("Hello", model="vanishing"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_not_loaded")
    assert adapted.metric("llava_engine_restarts") == 1
    assert adapted.load("vanishing", "corner", load_inplace=True).status_code == 200
    assert adapted.ask("vanishing") == CORNER


def test_server_stops_cleanly_during_an_engine_restart(adapted: Adapted) -> None:
    """The end of this server. A stream that runs ends with a framed error; whoever comes next is told to come again."""
    asked = body("Hello", stream=True, ignore_eos=True, max_tokens=3900)
    with adapted.client("alice") as http:
        with httpx.stream("POST", adapted.server.url + CHAT, json=asked, headers=http.headers, timeout=60) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            engine_of(adapted.server).kill()
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
    adapted.server.process.terminate()
    assert adapted.server.process.wait(30) == 0
