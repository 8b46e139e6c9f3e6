"""Checks of `/v1/responses`: each response and each event is validated with the types of OpenAI's SDK."""

import json
from typing import Any

from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
OURS = {"store"}
"""Fields that OpenAI's servers send and the SDK's type does not declare."""
ENDS = ("response.completed", "response.incomplete", "response.failed")


def check_response(value: dict[str, Any]) -> None:
    """Raise if the value is not a response."""
    Response.model_validate_json(json.dumps(value), strict=True)
    assert value.keys() <= Response.model_fields.keys() | OURS
    ids = [item["id"] for item in value["output"]]
    assert len(set(ids)) == len(ids)


def check_item_list(value: dict[str, Any]) -> None:
    ResponseItemList.model_validate_json(json.dumps(value), strict=True)


def check_event_stream(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream, after a check of their frames, numbers, types and order."""
    assert text.endswith("\n\n"), text[-200:]
    events: list[dict[str, Any]] = []
    for frame in text.split("\n\n")[:-1]:
        if frame == ": keep-alive":
            continue
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_json(data.removeprefix("data: "), strict=True)
        if "response" in event:
            check_response(event["response"])
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] in ENDS for event in events] == [False] * (len(events) - 1) + [True]
    _check_items(events)
    return events


def _check_items(events: list[dict[str, Any]]) -> None:
    """Check that the deltas of each item add up to the item, that one item ends before the next begins, and that the end has them all."""
    done: list[dict[str, Any]] = []
    text: str | None = None
    for event in events:
        kind = event["type"]
        if "output_index" in event:
            assert event["output_index"] == len(done)
        if kind == "response.output_item.added":
            assert text is None
            text = ""
        elif kind.endswith(".delta"):
            assert text is not None
            text += event["delta"]
        elif kind in ("response.output_text.done", "response.function_call_arguments.done"):
            assert event.get("text", event.get("arguments")) == text
        elif kind == "response.output_item.done":
            item = event["item"]
            assert text == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
            done.append(item)
            text = None
    assert events[-1]["response"]["output"] == done


def text_of(response: dict[str, Any]) -> str:
    """Return the text of a response's messages."""
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def without_ids(value: Any) -> Any:
    """Return a response without its ids and times, to compare it with another."""
    if isinstance(value, dict):
        names = ("id", "call_id", "created_at", "completed_at", "cached_tokens")
        return {name: without_ids(each) for name, each in value.items() if name not in names}
    return [without_ids(each) for each in value] if isinstance(value, list) else value
