"""The OpenAPI document: it is valid, and has the operations that this server serves and no others."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.documentation import openapi
from helpers.requests import MODEL
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from llava_gateway import create_app
from llava_gateway.api.chat_ui.router import FILES
from llava_gateway.app import APIS
from llava_gateway.settings import Settings

KEY = "secret"
CHAT_UI = {("GET", "/"), *(("GET", f"/page/{name}") for name in FILES)}
"""The paths of the chat UI, which are for browsers."""


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, Any]:
    """Settings that switch on every API, and require a key."""
    return {"feedback_dir": str(tmp_path), "lora_dir": str(tmp_path), "api_keys": (KEY,)}


def served(app: Starlette) -> set[tuple[str, str]]:
    """Return the methods and paths of an app's HTTP routes."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    return {(method, route.path_format) for route in routes for method in (route.methods or ()) if method != "HEAD"}


def described(document: Any) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


def references(value: Any) -> Iterator[str]:
    """Yield every `$ref` in a document."""
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_document_has_exactly_the_served_operations(everything: dict[str, Any]) -> None:
    app = create_app(Settings(model=MODEL, **everything), engine=lambda: pytest.fail("the test starts no engine"))
    assert described(openapi(**everything)) == served(app) - CHAT_UI


def test_objects_have_no_names_of_modules(everything: dict[str, Any]) -> None:
    """pydantic names a class by its module if another API has a class of the same name."""
    document = openapi(**everything)
    assert {"OllamaChatBody", "TextGenerationWebuiChatBody"} <= set(document["components"]["schemas"])
    assert "llava_gateway__" not in str(document)


@pytest.mark.parametrize("name", APIS)
def test_document_has_no_api_that_is_switched_off(name: str) -> None:
    apis = tuple(api for api in APIS if api != name)
    app = create_app(Settings(model=MODEL, apis=apis), engine=lambda: pytest.fail("the test starts no engine"))
    document = openapi(apis=apis)
    assert described(document) == served(app) - CHAT_UI
    assert {tag["name"] for tag in document["tags"]} == {operation["tags"][0] for operation in operations(document)}


def operations(document: Any) -> list[Any]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]


@pytest.mark.slow
def test_document_is_valid(everything: dict[str, Any]) -> None:
    document = openapi(**everything)
    Draft202012Validator(OPENAPI_31).validate(document)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} <= schemas.keys()
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_only_public_paths_need_no_key(everything: dict[str, Any]) -> None:
    document = openapi(**everything)
    assert document["security"] == [{name: []} for name in document["components"]["securitySchemes"]]
    public = {path for path, methods in document["paths"].items() for operation in methods.values() if operation.get("security") == []}
    assert public == {"/health", "/ready"}
    assert "security" not in openapi()


def test_document_names_the_path_of_a_proxy() -> None:
    app = create_app(Settings(model=MODEL), engine=lambda: pytest.fail("the test starts no engine"))
    document = TestClient(app, base_url="http://127.0.0.1", root_path="/llava").get("/openapi.json").json()
    assert document["servers"] == [{"url": "/llava"}]
    assert "servers" not in openapi()


def test_page_describes_every_operation_and_object_without_scripts(everything: dict[str, Any]) -> None:
    app = create_app(Settings(model=MODEL, **everything), engine=lambda: pytest.fail("the test starts no engine"))
    page = TestClient(app, base_url="http://127.0.0.1").get("/docs", headers={"x-api-key": KEY})
    assert "script-src" not in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert 'src="' not in page.text
    document = openapi(**everything)
    for method, path in described(document):
        assert f"<code>{method} {path}</code>" in page.text
    targets = set(re.findall(r'href="#(\w+)"', page.text))
    assert targets <= set(re.findall(r'id="(\w+)"', page.text)) == document["components"]["schemas"].keys()
