"""The tools of a request and the ways in which an answer may use them, for every endpoint with tools."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BeforeValidator, Field

from llava_gateway.api.openai.sampling import MAX_STRUCTURED_OUTPUT
from llava_gateway.api.schema import StrictModel
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Tool, ToolChoice

MAX_TOOLS = 128
MAX_DEFINITIONS = 8 * MAX_STRUCTURED_OUTPUT
"""The upper bound of the definitions of all tools of a request, in characters."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must be 1 to 64 letters, digits, `_`, `-` or `.`")
    return name


def _check_type(value: Any) -> Any:
    if value != "function":
        raise ValueError("must be function, because the model can call no other tools")
    return value


_Name = Annotated[str, AfterValidator(_check_name)]
FunctionType = Annotated[Literal["function"], BeforeValidator(_check_type)]


class FunctionDefinition(StrictModel):
    name: _Name = Field(description="1 to 64 letters, digits, `_`, `-` or `.`; no two tools have the same name")
    description: str | None = Field(None, description="the model sees it")
    parameters: dict[str, Any] | None = Field(
        None, description="the JSON Schema of the arguments, of type object; default: no arguments; `{}`: any object"
    )
    strict: bool | None = Field(None, description="ignored: where a grammar holds the call, its arguments always follow the schema")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request and how the answer may use them."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    param: str = "tools"
    """The name of the field with the tools."""


def to_tools(definitions: Iterable[tuple[FunctionDefinition, str]]) -> tuple[Tool, ...]:
    """Return the tools of a request. Raises InvalidRequest."""
    tools: list[Tool] = []
    names: set[str] = set()
    length = 0
    for function, path in definitions:
        tool = _tool(function, path)
        length += len(tool.description) + len(tool.parameters)
        if function.name in names:
            raise InvalidRequest(f"There are two tools with the name {function.name}.", param=f"{path}.name")
        if length > MAX_DEFINITIONS:
            raise InvalidRequest(f"The definitions of the tools have more than {MAX_DEFINITIONS} characters.", param=path)
        names.add(function.name)
        tools.append(tool)
    return tuple(tools)


def _tool(function: FunctionDefinition, path: str) -> Tool:
    param = f"{path}.parameters"
    if function.parameters is None:
        return Tool(function.name, function.description or "", param=path)
    if function.parameters.get("type", "object") != "object":
        raise InvalidRequest(f"{param}.type: must be object.", param=f"{param}.type")
    try:
        parameters = orjson.dumps(function.parameters).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{param} is nested too deeply.", param=param) from None
    if len(parameters) > MAX_STRUCTURED_OUTPUT:
        raise InvalidRequest(f"{param} is longer than {MAX_STRUCTURED_OUTPUT} characters.", param=param)
    return Tool(function.name, function.description or "", parameters, path)


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
    """Return the use of one tool. Raises InvalidRequest for an unknown name."""
    for tool in tools:
        if tool.name == name:
            return ToolUse((tool,), "named", parallel=False, param=param)
    raise InvalidRequest(f"{path}: there is no tool {name[:64]!r} in {param}.", param=path)
