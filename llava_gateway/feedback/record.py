"""A vote as it is kept: who thought what of which answer, and the conversation in the format that LLaVA is trained with
(github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md)."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from itertools import takewhile
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Message, Text

VoteName = Literal["up", "down", "flag"]

PLACEHOLDER = "<image>"
SPELT = "< image>"
"""What text that spells the placeholder becomes: LLaVA's trainer would take it for an image."""
MAX_TEXT = 1 << 20
"""Characters of a conversation."""


class Turn(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, serialize_by_alias=True)

    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: str


class Vote(BaseModel):
    """A line of the log. `<image>` and a line break for each picture stand at the head of the turn that shows it."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    time: str
    """ISO 8601, UTC."""
    model: str
    """The name that was asked for."""
    vote: VoteName
    key: str | None
    """Name of the key that the vote came with; None where none is asked for."""
    system: str
    """What the system says, which LLaVA's format has no place for; empty: nothing."""
    image: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.[a-z]{3,4}$")], ...]
    """Names of the pictures' files, in the order of their placeholders."""
    conversations: Annotated[tuple[Turn, ...], Field(min_length=2)]
    """Human and gpt take turns; the last is the answer that is voted on."""

    @property
    def subject(self) -> bytes:
        """What the vote is on, and by whom: another one with the same takes its place. A digest of 32 bytes."""
        return sha256(self.model_dump_json(exclude={"id", "time", "vote"}).encode()).digest()


def new_vote(model: str, vote: VoteName, key: str | None, messages: Sequence[Message], images: Sequence[str]) -> Vote:
    """`images`: the names of the messages' pictures. `messages`: as `check_turns` has let them through."""
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
    """InvalidRequest unless these can be a vote's: what the system says, if anything, then user and assistant by turns, to the answer."""
    first = len(list(takewhile(lambda message: message.role == "system", messages)))
    for index, message in enumerate(messages[first:], first):
        expected = "assistant" if (index - first) % 2 else "user"
        if message.role != expected:
            where = f"{param}[{index}].role"
            raise InvalidRequest(f"{where}: must be {expected}, since user and assistant take turns.", param=where)
    if messages[-1].role != "assistant":
        raise InvalidRequest(f"{param}: the last must be the assistant's, the answer that the vote is on.", param=param)
    if sum(len(part.text) for message in messages for part in message.content if isinstance(part, Text)) > MAX_TEXT:
        raise InvalidRequest(f"{param}: at most {MAX_TEXT} characters of text are taken.", param=param)


def _turn(message: Message) -> Turn:
    images = sum(not isinstance(part, Text) for part in message.content)
    speaker = "human" if message.role == "user" else "gpt"
    return Turn.model_validate({"from": speaker, "value": f"{PLACEHOLDER}\n" * images + _text(message)})


def _text(message: Message) -> str:
    """As LLaVA's own templates join it."""
    return "\n".join(part.text for part in message.content if isinstance(part, Text)).replace(PLACEHOLDER, SPELT)
