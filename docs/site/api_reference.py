"""The reference page of all APIs: their paths, and the fields of their objects, from the server's own OpenAPI document."""

from collections.abc import AsyncIterator
from tempfile import TemporaryDirectory
from typing import Any

from httpx import ASGITransport, AsyncClient

from llava_gateway import Settings, create_app
from llava_gateway.api.docs.page import type_html

INTRODUCTION = """# APIs and their fields

A running server has the same page at `/docs`, and in OpenAPI's format at `/openapi.json`. Both name only the APIs that the server serves
(`--apis`). A body's fields that are not named here are ignored."""


async def page() -> AsyncIterator[str]:
    """Yield the lines of the page, in Markdown with types in HTML."""
    document = await _document()
    yield INTRODUCTION
    for tag in document["tags"]:
        yield f"\n## {tag['name']}\n\n{tag['description']}\n\n| request | body | what it does |\n|---|---|---|"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield f"| `{method.upper()} {path}` | {_bodies(operation)} | {_cell(operation['summary'])} |"
    yield "\n## Objects"
    for name, schema in document["components"]["schemas"].items():
        if fields := schema.get("properties"):
            yield f"\n### {name} {{ #{name} }}\n\n{_cell(schema.get('description', ''))}\n\n| field | type | meaning |\n|---|---|---|"
            required = schema.get("required", ())
            for field, described in fields.items():
                kind = type_html(described) + ", required" * (field in required)
                yield f"| `{field}` | {kind} | {_cell(described.get('description', ''))} |"


async def _document() -> dict[str, Any]:
    """Return the OpenAPI document of a server with all APIs."""
    with TemporaryDirectory() as folder:
        app = create_app(Settings(model="llava-demo", feedback_dir=folder, lora_dir=folder))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client:
        response = await client.get("/openapi.json")
        return dict(response.raise_for_status().json())


def _bodies(operation: dict[str, Any]) -> str:
    """Return the types of a request's body, as HTML."""
    contents = operation.get("requestBody", {}).get("content", {})
    return " or ".join(dict.fromkeys(type_html(content["schema"]) for content in contents.values()))


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
