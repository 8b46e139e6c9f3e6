"""Tools in prompts: as variables of a chat template that renders tools, and as text for every other template.

The text has Hermes' form: `<tool_call>` around a call, `<tool_response>` around the result of a call.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from llava_gateway.types import Message, Text, Tool, ToolCall, ToolChoice

_HOW_TO_CALL: dict[ToolChoice, str] = {
    "auto": "You can call the functions below. To call a function, answer only with:\n"
    '<tool_call>\n{"name":NAME,"arguments":ARGUMENTS}\n</tool_call>',
    "required": 'Call the functions below. Answer with a JSON list of calls: [{"name":NAME,"arguments":ARGUMENTS}]',
    "named": "Call the function below. Answer with its arguments as a JSON object.",
}


def as_text(messages: Sequence[Message], tools: Sequence[Tool], tool_choice: ToolChoice, system: str) -> Sequence[Message]:
    """Return messages that a template without tools can render: calls, results and the definitions of the tools become texts.

    `system`: the template's system message, for chats that have none. Images and videos in results stay.
    """
    if tools:
        messages = _with_definitions(messages, definitions(tools, tool_choice), system)
    if not any(message.tool_calls or message.role == "tool" for message in messages):
        return messages
    return [_result(message) if message.role == "tool" else _with_calls(message) for message in messages]


def definitions(tools: Iterable[Tool], tool_choice: ToolChoice) -> str:
    """Return the definitions of tools as text, one in a line, after a sentence on how to call them."""
    return "\n".join((_HOW_TO_CALL[tool_choice], *map(_definition, tools)))


def template_tools(tools: Iterable[Tool], defuse: Callable[[str], str]) -> list[dict[str, Any]] | None:
    """Return the tools as chat templates expect them, in OpenAI's shape. None: there are none.

    `defuse`: splits the control tokens in a client's text.
    """
    return [
        {
            "type": "function",
            "function": {
                "name": defuse(tool.name),
                "description": defuse(tool.description),
                "parameters": _defused(orjson.loads(tool.parameters), defuse),
            },
        }
        for tool in tools
    ] or None


def add_tool_fields(plain: Sequence[dict[str, Any]], messages: Sequence[Message], defuse: Callable[[str], str]) -> None:
    """Add the calls and the ids of results to `plain`, which holds the messages as chat templates expect them."""
    names: dict[str, str] = {}
    for fields, message in zip(plain, messages, strict=True):
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            fields["tool_calls"] = [
                {
                    "id": defuse(call.id),
                    "type": "function",
                    "function": {"name": defuse(call.name), "arguments": _defused(orjson.loads(call.arguments), defuse)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            fields |= {"tool_call_id": defuse(message.tool_call_id), "name": defuse(names.get(message.tool_call_id, ""))}


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Return a value as JSON: the filter `tojson` of Hugging Face's templates, which escapes no HTML, unlike Jinja's own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _with_definitions(messages: Sequence[Message], text: str, system: str) -> list[Message]:
    """Return the messages with a text at the end of the system message."""
    for index, message in enumerate(messages):
        if message.role == "system":
            changed = Message("system", (*message.content, Text(f"\n{text}")))
            return [*messages[:index], changed, *messages[index + 1 :]]
    return [Message("system", (Text(f"{system}\n{text}" if system else text),)), *messages]


def _definition(tool: Tool) -> str:
    description = f'"description":{_json(tool.description)},' if tool.description else ""
    return f'{{"name":{_json(tool.name)},{description}"parameters":{tool.parameters}}}'


def _call(call: ToolCall) -> str:
    return f'<tool_call>\n{{"name":{_json(call.name)},"arguments":{call.arguments}}}\n</tool_call>'


def _with_calls(message: Message) -> Message:
    """Return a message with its calls as text."""
    if not message.tool_calls:
        return message
    return Message(message.role, (*message.content, Text("\n".join(map(_call, message.tool_calls)))))


def _result(message: Message) -> Message:
    """Return the result of a call as a user's message: its images and videos, and its texts in one."""
    text = "\n".join(part.text for part in message.content if isinstance(part, Text))
    media = (part for part in message.content if not isinstance(part, Text))
    return Message("user", (*media, Text(f"<tool_response>\n{text}\n</tool_response>")))


def _json(text: str) -> str:
    return orjson.dumps(text).decode()


def _defused(value: Any, defuse: Callable[[str], str]) -> Any:
    """Return a JSON value with the control tokens in its strings and names split."""
    if isinstance(value, str):
        return defuse(value)
    if isinstance(value, list):
        return [_defused(each, defuse) for each in value]
    if isinstance(value, dict):
        return {defuse(key): _defused(each, defuse) for key, each in value.items()}
    return value
