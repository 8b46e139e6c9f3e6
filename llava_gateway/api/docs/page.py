"""The page at `/docs`: the OpenAPI document as HTML, without scripts."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from llava_gateway.api.operation import Schema

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem } h3 { margin-top: 2rem } code { font: .9em ui-monospace, monospace }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0 }
tr + tr { border-top: 1px solid #eee } th { width: 8rem; white-space: nowrap; font-weight: normal } .no { color: #777 } a { color: inherit }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #111 } tr + tr { border-color: #333 } h2 { border-color: #444 } }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Return the HTML page for an OpenAPI document: the operations of each API, and then the objects that they share."""
    info = document["info"]
    apis = "".join(_api(tag, document["paths"]) for tag in document["tags"])
    objects = "".join(_object(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{info['title']}</title><style>{STYLE}</style><h1>{info['title']} {info['version']}</h1><p>{_prose(info['description'])} "
        f'The same in OpenAPI\'s format: <a href="openapi.json">openapi.json</a>.</p>{apis}<h2>Objects</h2>{objects}</html>'
    )


def _api(tag: dict[str, str], paths: dict[str, Any]) -> str:
    """Return the section of one API."""
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if tag["name"] in operation["tags"]
    )
    return f"<h2>{escape(tag['name'])}</h2><p>{_prose(tag['description'])}</p>{operations}"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    """Return one operation's heading, and its tables: the request with its answers, and the errors."""
    rows = [(f"<code>{escape(each['name'])}</code>", _words(each["schema"])) for each in operation.get("parameters", ())]
    rows += [("body", each) for each in _contents(operation.get("requestBody", {}))]
    responses = dict(operation["responses"])
    rows += [("200", each) for each in _contents(responses.pop("200", {}))]
    errors = [(status, _prose(error["description"])) for status, error in responses.items()]
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{_prose(operation['summary'])}.</p>{_table(rows)}"
        f"<details><summary>Errors</summary>{_table(errors)}</details>"
    )


def _contents(described: dict[str, Any]) -> Iterator[str]:
    """Yield each form of a body or an answer in a few words."""
    for media_type, content in described.get("content", {}).items():
        yield f"<code>{escape(media_type)}</code>: {_words(content['schema'])}"


def _words(schema: Schema) -> str:
    """Return the description of a schema, or its type if it has none."""
    return _prose(schema["description"]) if "description" in schema else type_html(schema)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{name}<td>{text}" for name, text in rows)
    return f"<table>{cells}</table>"


def _object(name: str, schema: Schema) -> str:
    """Return the section of one object, with its table of fields."""
    required = schema.get("required", ())
    fields = "".join(_field(field, described, field in required) for field, described in schema.get("properties", {}).items())
    return f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3><p>{_prose(schema.get("description", ""))}</p><table>{fields}</table>'


def _field(name: str, field: Schema, required: bool) -> str:
    """Return a field's table row: name, type and description. Refused and ignored fields show no type."""
    description = field.get("description", "")
    honoured = not description.startswith(("Refused", "Ignored"))
    kind = type_html(field) + (", required" if required else "") if honoured else ""
    return f"<tr{'' if honoured else ' class=no'}><th><code>{escape(name)}</code><td>{kind}<td>{_prose(description)}"


def type_html(schema: Schema) -> str:
    """Return a JSON Schema in a few words of HTML, such as `integer 0 to 20` or `array of string`. A reference becomes a link."""
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if options := schema.get("anyOf") or schema.get("oneOf"):
        kinds = dict.fromkeys(type_html(option) for option in options if option.get("type") != "null")
        return " or ".join(kinds)
    if "const" in schema:
        return escape(repr(schema["const"]).lower() if isinstance(schema["const"], bool) else str(schema["const"]))
    kind = escape(" or ".join(schema["type"]) if isinstance(schema.get("type"), list) else str(schema.get("type", "any")))
    if kind == "array" and "items" in schema:
        return f"array of {type_html(schema['items'])}"
    if fields := schema.get("properties"):
        return f"{kind} with {', '.join(f'<code>{escape(name)}</code>' for name in fields)}"
    return f"{kind}{_range(schema)}"


def _range(schema: Schema) -> str:
    """Return the words for a number's bounds. Bounds of 32 bits or more are not shown."""
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is None or low < -(1 << 31):
        return ""
    return f" {'over ' if 'exclusiveMinimum' in schema else ''}{low} to {high}" if high is not None else f" from {low}"


def _prose(text: str) -> str:
    """Return text as HTML, with words in backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
