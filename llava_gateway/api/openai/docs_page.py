"""The page at `/docs`: the OpenAPI document as HTML, without scripts."""

import re
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem } code { font: .9em ui-monospace, monospace }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0 }
tr + tr { border-top: 1px solid #eee } th { white-space: nowrap; font-weight: normal } .no { color: #777 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #111 } tr + tr { border-color: #333 } h2 { border-color: #444 } }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Return the HTML page for an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    paths = "".join(
        _operation(method, path, operation, schemas) for path, methods in document["paths"].items() for method, operation in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{info['title']}</title><style>{STYLE}</style><h1>{info['title']} {info['version']}</h1><p>{_prose(info['description'])} "
        f'The same in OpenAPI\'s format: <a href="openapi.json">openapi.json</a>.</p>{paths}</html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return one operation's heading and its tables of fields and answers."""
    html = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{_prose(operation['summary'])}.</p>"
    if body := operation.get("requestBody"):
        schema = schemas[body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
        rows = "".join(_field(name, field, name in schema.get("required", ()), schemas) for name, field in schema["properties"].items())
        html += f"<h3>Fields</h3><table>{rows}</table>"
    rows = "".join(f"<tr><th>{status}<td>{_prose(answer['description'])}" for status, answer in operation["responses"].items())
    return f"{html}<h3>Answers</h3><table>{rows}</table>"


def _field(name: str, field: dict[str, Any], required: bool, schemas: dict[str, Any]) -> str:
    """Return a field's table row: name, type and description. Refused and ignored fields show no type."""
    description = field.get("description", "")
    honoured = not description.startswith(("Refused", "Ignored"))
    kind = escape(_type(field, schemas)) + (", required" if required else "") if honoured else ""
    return f"<tr{'' if honoured else ' class=no'}><th><code>{escape(name)}</code><td>{kind}<td>{_prose(description)}"


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return a JSON Schema in a few words, such as `integer 0 to 20` or `array of string`."""
    if reference := schema.get("$ref"):
        return _type(schemas[reference.rpartition("/")[2]], schemas)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        kinds = dict.fromkeys(_type(option, schemas) for option in options if option.get("type") != "null")
        return " or ".join(kinds)
    if "const" in schema:
        return repr(schema["const"]).lower() if isinstance(schema["const"], bool) else str(schema["const"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}), schemas)}"
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is not None and low < -(1 << 31):
        return kind
    if low is not None and high is not None:
        return f"{kind} {'over ' if 'exclusiveMinimum' in schema else ''}{low} to {high}"
    return f"{kind} from {low}" if low is not None else kind


def _prose(text: str) -> str:
    """Return text as HTML, with words in backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
