"""The way of one `POST /v1/responses` from its input to the stored response."""

from typing import Any

from llava_gateway.api.openai.responses.items import InputMessage, Item, ItemReference, check_not_empty, to_messages
from llava_gateway.api.openai.responses.request import CreateResponse
from llava_gateway.api.openai.responses.response import ResponseObject, new_response_id
from llava_gateway.api.openai.responses.store import Conversation, ResponseStore, stored_forms
from llava_gateway.model_info import ModelInfo
from llava_gateway.types import ChatRequest, Message, Text, Usage


class Creation:
    """One response that is being made: its conversation, and its place in the store."""

    def __init__(self, store: ResponseStore, request: CreateResponse) -> None:
        self._store, self._request = store, request
        self._id = new_response_id()
        self._input: list[dict[str, Any]] = []
        """The request's own input items in the store's form."""

    async def prepare(self, conversation: Conversation) -> ChatRequest:
        """Return the gateway's request. `conversation`: reads what the request continues or refers to. Raises GatewayError."""
        request = self._request
        messages: tuple[Message, ...] = (Message("system", (Text(request.instructions),)),) if request.instructions else ()
        if request.previous_response_id:
            messages += await conversation.messages_until(request.previous_response_id)
        messages += await self._own_messages(conversation)
        check_not_empty(messages)
        return request.to_chat(messages)

    def begin(self, model: ModelInfo) -> ResponseObject:
        """Return the response, whose answer by `model` begins now."""
        return ResponseObject(self._id, self._request, model, len(self._input))

    async def finish(self, response: ResponseObject, usage: Usage) -> bytes:
        """Store the response, unless the request forbids it, and return the response as JSON."""
        finished = response.finished(usage)
        if self._request.store is False:
            return finished
        if await self._store.save(self._id, self._request.previous_response_id or None, self._input, finished):
            return finished
        response.not_stored()
        return response.finished(usage)

    async def _own_messages(self, conversation: Conversation) -> tuple[Message, ...]:
        """Return the messages of the request's own input, with the items that it refers to."""
        given = self._request.input
        if isinstance(given, str):
            given = [InputMessage(role="user", content=given)]
        items: list[tuple[Item, str]] = []
        forms: list[Item | dict[str, Any]] = []
        for index, item in enumerate(given):
            path = f"input[{index}]"
            if isinstance(item, ItemReference):
                found, form = await conversation.resolve(item, path)
                items.append((found, path))
                forms.append(form)
            else:
                items.append((item, path))
                forms.append(item)
        self._input = stored_forms(forms, self._id)
        return to_messages(items)
