"""Stored responses: each has its own input and output, and the id of the response that it continues.

A response belongs to the API key that has created it. Another key's response looks like one that does not exist.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from llava_gateway.api.openai.messages import MAX_MESSAGES
from llava_gateway.api.openai.responses.items import (
    STORED_ITEMS,
    Item,
    ItemReference,
    place_of,
    stored_form,
    text_of,
    to_messages,
)
from llava_gateway.errors import GatewayError, InvalidRequest, NotFound
from llava_gateway.http.request_body import JsonBody, JsonText
from llava_gateway.observability.context import current_context
from llava_gateway.storage.object_store import ObjectStore
from llava_gateway.types import BodySlice, Message, Text

MAX_RESPONSES = 512
"""The upper bound of responses that one conversation is made of."""
LARGE = 1 << 20
"""From this size on, in bytes, a response is rendered in a thread, so that other requests run meanwhile."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as the store has it."""

    previous_id: str | None
    input: list[dict[str, Any]]
    """The response's own input items. Their long images and videos are BodySlices."""
    response: dict[str, Any]

    @property
    def items(self) -> list[dict[str, Any]]:
        """The input items and the output items. An item's position is the one in its id."""
        return self.input + list(self.response["output"])


class ResponseStore:
    """The stored responses of all API keys."""

    def __init__(self, objects: ObjectStore, max_bytes: int) -> None:
        """`max_bytes`: the upper bound of one stored response."""
        self._objects = objects
        self._max_bytes = max_bytes

    async def save(self, response_id: str, previous_id: str | None, items: Sequence[dict[str, Any]], response: bytes) -> bool:
        """Store a response with its own input items, and return whether there was room for it. `response`: as JSON."""
        value = {"previous_response_id": previous_id, "input": items, "response": orjson.Fragment(response)}
        size = len(response) + sum(len(medium.ascii) for medium in _media(items))
        if size > self._max_bytes:
            return False
        stored = await asyncio.to_thread(dump, value) if size > LARGE else dump(value)
        try:
            await self._objects.put(_owner(), response_id, stored)
        except GatewayError:
            return False
        return True

    async def get(self, response_id: str) -> StoredResponse:
        """Return a response. Raises NotFound."""
        value = await self._objects.get(_owner(), response_id)
        if value is None:
            raise NotFound(f"There is no stored response {response_id[:64]!r}.", code="response_not_found")
        return _loaded(JsonText(value, max_text=None).parse())

    def conversation(self, body: JsonBody) -> "Conversation":
        """Return a reader of stored conversations for the request with this body."""
        return Conversation(self._objects, body)

    async def delete(self, response_id: str) -> None:
        """Delete a response. Raises NotFound."""
        if not await self._objects.delete(_owner(), response_id):
            raise NotFound(f"There is no stored response {response_id[:64]!r}.", code="response_not_found")


class Conversation:
    """The conversation that one request continues, read from the store.

    The memory of everything that is read is reserved together with the request's body.
    """

    def __init__(self, objects: ObjectStore, body: JsonBody) -> None:
        self._objects = objects
        self._body = body
        self._loaded: dict[str, StoredResponse] = {}

    async def messages_until(self, response_id: str) -> tuple[Message, ...]:
        """Return the messages of a response and of all responses before it. Raises InvalidRequest, BodyTooLarge and TooManyRequests."""
        chain: list[StoredResponse] = []
        following: str | None = response_id
        items = 0
        while following is not None:
            chain.append(await self._response(following))
            items += len(chain[-1].items)
            if len(chain) > MAX_RESPONSES or items > MAX_MESSAGES:
                raise InvalidRequest(
                    f"The conversation has more than {MAX_RESPONSES} responses or {MAX_MESSAGES} items; send its items as input.",
                    param="previous_response_id",
                )
            following = chain[-1].previous_id
        stored = [item for response in reversed(chain) for item in response.items]
        return _stored_messages(stored, "previous_response_id")

    async def resolve(self, reference: ItemReference, path: str) -> tuple[Item, dict[str, Any]]:
        """Return the item that a reference names, also as the store has it. Raises InvalidRequest."""
        place = place_of(reference.id)
        value = place and await self._load(place[0])
        if not place or not value or place[1] >= len(value.items):
            raise InvalidRequest(
                f"There is no stored item {reference.id[:64]!r}; send the item itself.", param=f"{path}.id", code="item_not_found"
            )
        stored = value.items[place[1]]
        (item,) = STORED_ITEMS.validate_python([stored])
        assert not isinstance(item, ItemReference)
        return item, stored

    async def _response(self, response_id: str) -> StoredResponse:
        """Return a response of the chain. Raises InvalidRequest, with OpenAI's message and code."""
        if (found := await self._load(response_id)) is None:
            raise InvalidRequest(
                f"Previous response with id {response_id[:64]!r} not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return found

    async def _load(self, response_id: str) -> StoredResponse | None:
        if response_id not in self._loaded:
            value = await self._objects.get(_owner(), response_id)
            if value is None:
                return None
            self._loaded[response_id] = _loaded(self._body.parse_more(value))
        return self._loaded[response_id]


def stored_forms(items: Sequence[Item | dict[str, Any]], response_id: str) -> list[dict[str, Any]]:
    """Return the input items of a response as the store has them. An item that comes from the store already keeps its id."""
    forms: list[dict[str, Any]] = []
    for item in items:
        form = item if isinstance(item, dict) else stored_form(item, response_id, len(forms))
        if form:
            forms.append(form)
    return forms


def dump(value: Any) -> bytes:
    """Return a value that may have BodySlices as JSON."""
    return orjson.dumps(value, default=_text_of, option=orjson.OPT_PASSTHROUGH_DATACLASS)


def _text_of(value: Any) -> str:
    if isinstance(value, BodySlice):
        return text_of(value)
    raise TypeError


def _loaded(value: dict[str, Any]) -> StoredResponse:
    return StoredResponse(value["previous_response_id"], value["input"], value["response"])


def _stored_messages(stored: list[dict[str, Any]], param: str) -> tuple[Message, ...]:
    """Return the messages of stored items. `param`: the field of the request that errors in their images and videos name."""
    items = STORED_ITEMS.validate_python(stored)
    messages = to_messages((item, param) for item in items if not isinstance(item, ItemReference))
    return tuple(dataclasses.replace(message, content=tuple(_with_param(part, param) for part in message.content)) for message in messages)


def _with_param(part: Any, param: str) -> Any:
    return part if isinstance(part, Text) else dataclasses.replace(part, param=param)


def _media(items: Sequence[dict[str, Any]]) -> list[BodySlice]:
    """Return the long images and videos of items in the store's form."""
    parts = (part for item in items for part in (item.get("content") or item.get("output") or ()) if isinstance(part, dict))
    return [url for part in parts for name in ("image_url", "video_url") if isinstance(url := part.get(name), BodySlice)]


def _owner() -> str:
    return current_context().key_name
