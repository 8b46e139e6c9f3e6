"""The stored form of a vote: the vote, the model, the API key's name, and the conversation in LLaVA's training format
(github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md)."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from itertools import takewhile
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Message, Text, VideoUrl

VoteName = Literal["up", "down", "flag"]

PLACEHOLDER = "<image>"
SPELT = "< image>"
"""The replacement for a placeholder in a user's text, which LLaVA's trainer would treat as an image."""
MAX_TEXT = 1 << 20
"""The greatest length of a conversation, in characters."""


class Turn(BaseModel):
    """A message in LLaVA's format."""

    model_config = ConfigDict(frozen=True, strict=True, serialize_by_alias=True)

    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: str


class Vote(BaseModel):
    """A line of the log. A turn with images begins with `<image>` and a line break for each image."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    time: str
    """The time of the vote, in ISO 8601 and UTC."""
    model: str
    """The model's name in the request."""
    vote: VoteName
    key: str | None
    """The name of the voter's API key; None if the server requires no key."""
    system: str
    """The system prompt, or an empty string. LLaVA's format has no field for it."""
    image: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.[a-z]{3,4}$")], ...]
    """The names of the image files, in the order of their placeholders."""
    conversations: Annotated[tuple[Turn, ...], Field(min_length=2)]
    """The turns of human and gpt, alternating. The last turn is the answer that the vote is about."""

    @property
    def subject(self) -> bytes:
        """A digest of the voter, the model and the conversation, 32 bytes. A later vote with the same digest replaces this vote."""
        return sha256(self.model_dump_json(exclude={"id", "time", "vote"}).encode()).digest()


def new_vote(model: str, vote: VoteName, key: str | None, messages: Sequence[Message], images: Sequence[str]) -> Vote:
    """Return a vote with a new id and the current time. `messages`: checked by `check_turns`. `images`: the names of their image files."""
    system = [message for message in messages if message.role == "system"]
    return Vote(
        id=str(uuid.uuid4()),
        time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        model=model,
        vote=vote,
        key=key,
        system="\n".join(map(_text, system)),
        image=tuple(images),
        conversations=tuple(_turn(message) for message in messages[len(system) :]),
    )


def check_turns(messages: Sequence[Message], param: str = "messages") -> None:
    """Raise InvalidRequest if the messages are not a conversation that can be voted on.

    Allowed are system messages at the beginning, then user and assistant in alternation, and an assistant's answer at the end. Only the
    user's messages may have images, because LLaVA is trained with images of the user. No message may have videos.
    """
    first = len(list(takewhile(lambda message: message.role == "system", messages)))
    for index, message in enumerate(messages[first:], first):
        expected = "assistant" if (index - first) % 2 else "user"
        if message.role != expected:
            where = f"{param}[{index}].role"
            raise InvalidRequest(f"{where}: must be {expected}, because user and assistant alternate.", param=where)
    for role, part in ((message.role, part) for message in messages for part in message.content):
        if isinstance(part, VideoUrl):
            raise InvalidRequest(f"{part.param}: votes on answers about videos are not stored.", param=part.param)
        if role != "user" and not isinstance(part, Text):
            raise InvalidRequest(f"{part.param}: in a vote only the user's messages may have images.", param=part.param)
    if messages[-1].role != "assistant":
        raise InvalidRequest(f"{param}: the last message must be the assistant's answer that the vote is about.", param=param)
    if sum(len(part.text) for message in messages for part in message.content if isinstance(part, Text)) > MAX_TEXT:
        raise InvalidRequest(f"{param}: at most {MAX_TEXT} characters of text are allowed.", param=param)


def _turn(message: Message) -> Turn:
    images = sum(not isinstance(part, Text) for part in message.content)
    speaker = "human" if message.role == "user" else "gpt"
    return Turn.model_validate({"from": speaker, "value": f"{PLACEHOLDER}\n" * images + _text(message)})


def _text(message: Message) -> str:
    """Return the message's text. The parts are joined as in LLaVA's own templates."""
    return "\n".join(part.text for part in message.content if isinstance(part, Text)).replace(PLACEHOLDER, SPELT)
