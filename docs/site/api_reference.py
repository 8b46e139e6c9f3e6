"""The reference page of all APIs: their paths, and the fields of their objects, from the server's own OpenAPI document."""

from collections.abc import AsyncIterator
from tempfile import TemporaryDirectory
from typing import Any

from httpx import ASGITransport, AsyncClient

from llava_gateway import Settings, create_app

INTRODUCTION = """# APIs and their fields

A running server has the same page at `/docs`, and in OpenAPI's format at `/openapi.json`. Both name only the APIs that the server serves
(`--apis`). A body's fields that are not named here are ignored."""


async def page() -> AsyncIterator[str]:
    """Yield the lines of the page, in Markdown."""
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
            yield f"\n### {name}\n\n{_cell(schema.get('description', ''))}\n\n| field | type | meaning |\n|---|---|---|"
            required = schema.get("required", ())
            for field, described in fields.items():
                yield f"| `{field}` | {_type(described)}{', required' * (field in required)} | {_cell(described.get('description', ''))} |"


async def _document() -> dict[str, Any]:
    """Return the OpenAPI document of a server with all APIs."""
    with TemporaryDirectory() as folder:
        app = create_app(Settings(model="llava-demo", feedback_dir=folder, lora_dir=folder))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client:
        response = await client.get("/openapi.json")
        return dict(response.raise_for_status().json())


def _bodies(operation: dict[str, Any]) -> str:
    """Return the types of a request's body."""
    contents = operation.get("requestBody", {}).get("content", {})
    return " or ".join(dict.fromkeys(_type(content["schema"]) for content in contents.values()))


def _type(schema: dict[str, Any]) -> str:
    """Return a JSON Schema in a few words of Markdown. A reference becomes a link."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options if option.get("type") != "null"))
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    return str(" or ".join(kind) if isinstance(kind, list) else kind) + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    """Return the bounds of a number. Bounds of 32 bits or more are left out."""
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is None or low < -(1 << 31):
        return ""
    over = " over" * ("exclusiveMinimum" in schema)
    return f"{over} {low} to {high}" if high is not None else f"{over or ' from'} {low}"


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
