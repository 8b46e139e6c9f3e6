"""The grammars that hold an answer to calls of tools, with arguments that are valid against each tool's JSON Schema.

A grammar has one compact form without white space between the parts of the JSON, so that no answer is padded.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import orjson

from llava_gateway.engine.closed_schema import ANY_OBJECT, MAPS, NESTED, close_objects
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import ChatRequest, SamplingParams, StructuredOutput, Tool

MAX_CALLS = 8
"""The greatest number of calls in an answer that must call tools. A weak model would otherwise call tools until its tokens are used up."""
MAX_LENGTH = 65_536
"""The upper bound of a grammar, in characters, as for other structured outputs."""


def hold_to_calls(request: ChatRequest, sampling: SamplingParams) -> SamplingParams:
    """Return the sampling parameters for an answer that must be a call: of the named tool, or of one or more of the tools.

    The answer is the arguments of the named tool as JSON, or a JSON array of objects with a name and arguments. No stop string ends it.
    Raises InvalidRequest.
    """
    _check_length(sum(len(tool.parameters) for tool in request.tools), request.tools_param)
    if sampling.structured_output:
        param = sampling.structured_output.param
        raise InvalidRequest(f"{param} cannot be combined with a tool_choice that requires a call; leave one of them out.", param=param)
    if request.tool_choice == "named":
        tool = request.tools[0]
        spec, param = orjson.dumps(arguments_schema(tool)).decode(), tool.param
    else:
        spec, param = _list_schema(request.tools, MAX_CALLS if request.parallel_tool_calls else 1), request.tools_param
    uncut = dataclasses.replace(sampling, stop=(), stop_token_ids=())  # a stop string would cut the JSON
    return _held(uncut, StructuredOutput("json", spec, param))


def hold_to_text_or_calls(request: ChatRequest, sampling: SamplingParams) -> SamplingParams:
    """Return the sampling parameters for an answer that is text, or one or more calls in Hermes' form.

    If the request has a JSON Schema for the answer, text follows the schema. Raises InvalidRequest.
    """
    _check_length(sum(len(tool.parameters) for tool in request.tools), request.tools_param)
    wanted = sampling.structured_output
    if wanted and wanted.kind not in ("json", "json_object"):
        raise InvalidRequest(f"{wanted.param} cannot be combined with tools; leave one of them out.", param=wanted.param)
    text = f"text: {_lark_json(_schema_of(wanted))}" if wanted else "text: TEXT\nTEXT: /(?s:.*)/ & ~/\\s*<tool_call>(?s:.*)/"
    calls = " | ".join(f"call_{index}" for index in range(len(request.tools)))
    rules = [f"start: text | {'call+' if request.parallel_tool_calls else 'call'}", text, f"call: {calls}"]
    for index, tool in enumerate(request.tools):
        rules += [
            f'call_{index}: OPEN_{index} arguments_{index} "}}\\n</tool_call>"',
            f'OPEN_{index}: /\\s*<tool_call>\\n\\{{"name":"{re.escape(tool.name)}","arguments":/',
            f"arguments_{index}: {_lark_json(arguments_schema(tool))}",
        ]
    return _held(sampling, StructuredOutput("grammar", "\n".join(rules), request.tools_param))


def arguments_schema(tool: Tool, root: str = "#") -> dict[str, Any]:
    """Return the JSON Schema of a tool's arguments: objects that do not say otherwise have no other properties than those declared.

    A schema that says nothing about its properties allows any object of a bounded size.
    `root`: the place of the schema in the document where it will stand, as a JSON pointer: references are rewritten to it.
    Raises InvalidRequest if the schema is not of type object.
    """
    schema = _closed(tool.parameters, tool.param)
    if schema.get("type", "object") != "object":
        raise InvalidRequest("The arguments of a tool must be of type object.", param=f"{tool.param}.type")
    moved: dict[str, Any] = _moved(schema if schema.keys() - {"type"} else orjson.loads(ANY_OBJECT), root)
    return {"type": "object"} | moved


def _list_schema(tools: Sequence[Tool], max_calls: int) -> str:
    """Return the JSON Schema of a list of calls. Each tool's own schema stands under `$defs`, with its references."""
    definitions = {str(index): arguments_schema(tool, f"#/$defs/{index}") for index, tool in enumerate(tools)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{index}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, tool in enumerate(tools)
    ]
    schema = {"$defs": definitions, "type": "array", "minItems": 1, "maxItems": max_calls, "items": {"anyOf": calls}}
    return orjson.dumps(schema).decode()


def _closed(schema: str, param: str) -> dict[str, Any]:
    """Return a JSON Schema with its objects closed. Raises InvalidRequest for `param` if the schema is no object or too complicated."""
    try:
        closed = orjson.loads(close_objects(schema))
    except ValueError:
        closed = None
    if not isinstance(closed, dict):
        raise InvalidRequest(f"{param} must be a JSON Schema that is not too complicated.", param=param)
    return closed


def _moved(schema: Any, root: str) -> Any:
    """Return a schema that may stand at `root` of another document."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {}
    for key, value in schema.items():
        if key in ("$schema", "$id"):  # the schema stands in another document now
            continue
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            value = root + value[1:]
        elif key in MAPS and isinstance(value, dict):
            value = {name: _moved(each, root) for name, each in value.items()}
        elif key in NESTED:
            value = _moved(value, root)
        moved[key] = value
    return moved


def _schema_of(structured_output: StructuredOutput) -> dict[str, Any]:
    """Return the JSON Schema of a structured output of kind json or json_object. Raises InvalidRequest if it is not an object."""
    schema = str(structured_output.spec) if structured_output.kind == "json" else ANY_OBJECT
    moved: dict[str, Any] = _moved(_closed(schema, structured_output.param), "#")
    return moved


def _lark_json(schema: dict[str, Any]) -> str:
    return "%json " + orjson.dumps(schema | {"x-guidance": {"whitespace_flexible": False}}).decode()


def _held(sampling: SamplingParams, structured_output: StructuredOutput) -> SamplingParams:
    """Return the parameters with a structured output. Raises InvalidRequest if they contradict it."""
    param = structured_output.param
    _check_length(len(structured_output.spec), param)
    for name in ("ignore_eos", "min_tokens"):
        if getattr(sampling, name):
            raise InvalidRequest(f"{name} cannot be combined with {param}, which decides where the answer ends.", param=name)
    return dataclasses.replace(sampling, structured_output=structured_output)


def _check_length(length: int, param: str) -> None:
    if length > MAX_LENGTH:
        raise InvalidRequest(f"The schemas of the tools have more than {MAX_LENGTH} characters together; send fewer tools.", param=param)
