"""The field `context` of `/api/generate`: an earlier conversation, as a list of integers that the client sends back.

For Ollama the integers are tokens. Here they are the bytes of the texts as JSON, so that the chat template renders each turn.
"""

from collections.abc import Sequence

import orjson

from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Message, Text

MAX_CONTEXT = 1 << 16
"""The upper bound of a context, in bytes."""
_ROLES = ("system", "user", "assistant")


def encode_context(messages: Sequence[Message], answer: str) -> list[int] | None:
    """Return the context of a conversation with its answer. None if it is longer than `MAX_CONTEXT`."""
    turns: list[tuple[str, str, int]] = []
    for message in messages:
        texts = [part.text for part in message.content if isinstance(part, Text)]
        turns.append((message.role, "".join(texts), len(message.content) - len(texts)))
    context = orjson.dumps([*turns, ("assistant", answer, 0)])
    return list(context) if len(context) <= MAX_CONTEXT else None


def decode_context(context: Sequence[int]) -> tuple[Message, ...]:
    """Return the messages of a context. Raises InvalidRequest for another server's context, and for a conversation with images."""
    if not context:
        return ()
    try:
        turns = orjson.loads(bytes(context))
        messages = tuple(Message(role, (Text(text),)) for role, text, _ in turns if role in _ROLES and isinstance(text, str))
        images = sum(count for *_, count in turns)
    except (ValueError, TypeError):
        raise InvalidRequest("context: must be the context of an earlier answer of this server.", param="context") from None
    if images:
        raise InvalidRequest(
            "context: the conversation has images, which a context cannot hold; send the whole conversation to /api/chat.", param="context"
        )
    return messages
