"""The controller's paths of LLaVA's API."""

from typing import Any

import httpx
import pytest
from helpers.llava_worker import GENERATE, HELLO, PAGE_NAME, refused, request
from helpers.requests import MODEL
from helpers.server import Server


@pytest.mark.parametrize("content", [{}, {"json": {}}, {"content": b"whatever"}])
def test_controller_path_works_without_a_body(plain_http: httpx.Client, content: dict[str, Any]) -> None:
    assert plain_http.post("/refresh_all_workers", **content).content == b"null"
    assert plain_http.post("/list_models", **content).json() == {"models": [PAGE_NAME]}
    assert plain_http.post("/worker_get_status", **content).json() == {"model_names": [PAGE_NAME], "speed": 1, "queue_length": 0}


def test_worker_address_is_the_address_that_the_client_used(plain_http: httpx.Client, server: Server) -> None:
    for name in (MODEL, PAGE_NAME):
        assert plain_http.post("/get_worker_address", json={"model": name}).json() == {"address": server.url}
    named = plain_http.post("/get_worker_address", json={"model": MODEL}, headers={"host": "localhost:10000"})
    assert named.json() == {"address": "http://localhost:10000"}
    assert plain_http.post("/get_worker_address", json={"model": "gpt-5"}).json() == {"address": ""}


def test_another_worker_cannot_register(plain_http: httpx.Client, server: Server) -> None:
    status = {"model_names": ["other"], "speed": 1, "queue_length": 0}
    worker = {"worker_name": "http://localhost:21002", "check_heart_beat": True, "worker_status": status}
    refused(plain_http.post("/register_worker", json=worker), 400, 1, "LLaVA's own controller", "--controller")
    for name, exists in ((server.url, True), (f"{server.url}/", True), ("http://localhost:21002", False), ("", False)):
        assert plain_http.post("/receive_heart_beat", json={"worker_name": name, "queue_length": 0}).json() == {"exist": exists}
    assert plain_http.post("/list_models").json() == {"models": [PAGE_NAME]}


def test_other_apis_do_not_list_the_name_for_the_page(plain_http: httpx.Client) -> None:
    assert [model["id"] for model in plain_http.get("/v1/models").json()["data"]] == [MODEL]
    answers = [plain_http.post(GENERATE, json=request(HELLO, model=name)).content for name in (MODEL, PAGE_NAME)]
    first, second = (answer.split(b"\0")[-2] for answer in answers)  # the last chunk has the whole text
    assert first == second


@pytest.mark.parametrize(
    ("path", "content", "named"),
    [
        ("/get_worker_address", {}, "model"),
        ("/get_worker_address", {"model": None}, "model"),
        ("/get_worker_address", {"model": [MODEL]}, "model"),
        ("/receive_heart_beat", {"queue_length": 0}, "worker_name"),
        ("/receive_heart_beat", {"worker_name": 5}, "worker_name"),
    ],
)
def test_bad_controller_request_names_the_field(plain_http: httpx.Client, path: str, content: dict[str, Any], named: str) -> None:
    refused(plain_http.post(path, json=content), 400, 1, named)


def test_get_request_is_refused_with_405(plain_http: httpx.Client) -> None:
    for path in (GENERATE, "/list_models", "/get_worker_address"):
        refused(plain_http.get(path), 405, 1)
