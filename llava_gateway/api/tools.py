"""Tools as the APIs share them: the bounds of their definitions, and how an answer may use them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic_core import from_json

from llava_gateway.api.schema import MAX_STRUCTURED_OUTPUT, to_schema_text
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Tool, ToolChoice

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
NAME_FORM = "1 to {} letters, digits, `_`, `-` or `.`"
MAX_TOOLS = 128
MAX_DEFINITIONS = 8 * MAX_STRUCTURED_OUTPUT
"""The upper bound of the definitions of all tools of a request, in characters."""


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool as the client has declared it."""

    name: str
    description: str | None
    schema: dict[str, Any] | None
    """The JSON Schema of the arguments. None: the tool has no arguments."""
    param: str
    """The path of the tool in the client's request."""
    schema_param: str
    """The path of the schema."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request and how the answer may use them."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    param: str = "tools"
    """The name of the field with the tools."""


def check_name(name: str, max_length: int) -> str:
    """Return the name of a tool. Raises ValueError for a name of another form than `NAME_FORM`."""
    if len(name) > max_length or not _NAME.fullmatch(name):
        raise ValueError(f"must be {NAME_FORM.format(max_length)}")
    return name


def to_tools(definitions: Iterable[ToolDefinition]) -> tuple[Tool, ...]:
    """Return the tools of a request. Raises InvalidRequest for two tools of one name, and for schemas that are wrong or too long."""
    tools: list[Tool] = []
    names: set[str] = set()
    length = 0
    for definition in definitions:
        tool, param = _tool(definition), definition.param
        length += len(tool.description) + len(tool.parameters)
        if tool.name in names:
            raise InvalidRequest(f"There are two tools with the name {tool.name}.", param=f"{param}.name")
        if length > MAX_DEFINITIONS:
            raise InvalidRequest(f"The definitions of the tools have more than {MAX_DEFINITIONS} characters.", param=param)
        names.add(tool.name)
        tools.append(tool)
    return tuple(tools)


def any_tool(tools: tuple[Tool, ...], choice: str | None, parallel: bool) -> ToolUse:
    """Return the use of all tools, for a `tool_choice` of none, auto or required."""
    return ToolUse() if choice == "none" else ToolUse(tools, "required" if choice == "required" else "auto", parallel)


def allowed_tools(
    tools: tuple[Tool, ...], allowed: Sequence[tuple[str, str]], mode: Literal["auto", "required"], parallel: bool
) -> ToolUse:
    """Return the use of some tools. `allowed`: the name of each, and its path in the request. Raises InvalidRequest for an unknown name."""
    for name, path in allowed:
        named_tool(tools, name, path, "tools")
    names = {name for name, _ in allowed}
    return ToolUse(tuple(tool for tool in tools if tool.name in names), mode, parallel)


def named_tool(tools: tuple[Tool, ...], name: str, path: str, param: str) -> ToolUse:
    """Return the use of one tool. Raises InvalidRequest for an unknown name.

    `path`: the path of the name. `param`: the name of the field with the tools.
    """
    for tool in tools:
        if tool.name == name:
            return ToolUse((tool,), "named", parallel=False, param=param)
    raise InvalidRequest(f"{path}: there is no tool {name[:64]!r} in {param}.", param=path)


def render_arguments(arguments: str) -> bytes:
    """Return the arguments of a call as a JSON object. Of arguments that were cut off, this is the part that has arrived."""
    try:
        if isinstance(orjson.loads(arguments), dict):
            return arguments.encode()
    except orjson.JSONDecodeError:
        pass
    try:
        found = from_json(arguments, allow_partial=True)
        return orjson.dumps(found) if isinstance(found, dict) else b"{}"
    except (ValueError, orjson.JSONEncodeError):
        return b"{}"


def _tool(definition: ToolDefinition) -> Tool:
    name, description, schema, param = definition.name, definition.description or "", definition.schema, definition.schema_param
    if schema is None:
        return Tool(name, description, param=param)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"{param}.type: must be object.", param=f"{param}.type")
    return Tool(name, description, to_schema_text(schema, param), param)
