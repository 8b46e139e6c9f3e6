"""Chats whose turns the client keeps: `/api/v1/chat` and `/api/v1/chat-stream`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llava_gateway.api.schema import RefusedField, StrictModel
from llava_gateway.api.text_generation_webui.prompts import split_at_images, uses_all_images
from llava_gateway.api.text_generation_webui.sampling import ALL_IMAGES, EMPTY, SamplingFields
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import BUILT_IN
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import ChatRequest, ImageUrl, Message, Text, has_text_before_image

GREETING = "<|BEGIN-VISIBLE-CHAT|>"
"""The user's half of a turn in which the model has greeted first."""
MAX_TURNS = 1024
TEMPLATES: dict[str, str | None] = {
    "LLaVA": None,
    "LLaVA-v0": "llava_v0",
    "LLaVA-v1": "llava_v1",
    "Vicuna-v1.1": "vicuna_v1",
    "Llama-v2": "llava_llama_2",
    "Mistral": "mistral_instruct",
    "ChatML": "chatml",
} | {name: name for name in BUILT_IN}
"""Built-in templates by the dialect's names and by their own. None: the server's own template."""
NO_CHARACTERS = "the model plays no character"
TEMPLATE_BY_NAME = "choose an instruction_template by its name"

_Turn = Annotated[list[str], Field(min_length=2, max_length=2)]
"""The user's message and the model's answer."""
_Turns = Annotated[list[_Turn], Field(max_length=MAX_TURNS, fail_fast=True)]


class History(StrictModel):
    """The earlier turns of a chat."""

    internal: _Turns | None = Field(None, description="the turns for the model: pairs of the user's message and the model's answer")
    visible: _Turns | None = Field(
        None, description="the turns as the client shows them, as many as in `internal`; default: those of `internal`"
    )


@dataclass(frozen=True, slots=True)
class ChatTurns:
    """All turns of a chat, as the model gets them and as the client shows them.

    The model answers the last turn. The second half of the last turn is the beginning of that answer, or empty.
    """

    internal: list[list[str]]
    visible: list[list[str]]

    @property
    def length(self) -> int:
        """The length of both lists of turns, in characters."""
        return sum(len(question) + len(answer) for turns in (self.internal, self.visible) for question, answer in turns)

    def render_history(self, text: str) -> dict[str, Any]:
        """Return the field `history` of a response. `text`: the answer so far."""
        return {"internal": _with_answer(self.internal, text), "visible": _with_answer(self.visible, text)}


def _with_answer(turns: list[list[str]], text: str) -> list[list[str]]:
    *earlier, (question, answer_start) = turns
    return [*earlier, [question, answer_start + text]]


def _without_answer(turns: list[list[str]]) -> list[list[str]]:
    return [*turns[:-1], [turns[-1][0], ""]]


class ChatBody(SamplingFields):
    """`POST /api/v1/chat`, and a message to `/api/v1/chat-stream`."""

    user_input: str | None = Field(
        None, description='the user\'s message, with images as `<img src="data:...">`; ignored with regenerate and with _continue'
    )
    history: History | None = Field(None, description="the earlier turns; default: none")
    regenerate: bool | None = Field(None, description="true: answer the last turn of the history again; default false")
    continue_: bool | None = Field(None, alias="_continue", description="true: continue the last answer of the history; default false")
    mode: Literal["instruct", "chat-instruct", "chat"] | None = Field(
        None, description="`instruct`, `chat-instruct` or `chat`; all use the instruction template; default `chat`"
    )
    instruction_template: str | None = Field(
        None,
        description=f"the chat template: {', '.join(f'`{name}`' for name in TEMPLATES)}; `None` and the default: the server's own template",
    )
    context_instruct: str | None = Field(None, description="the system message; default: the template's own")
    context: str | None = Field(
        None, description="the system message in the modes `chat` and `chat-instruct`; it replaces context_instruct there"
    )
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)

    refused: ClassVar = SamplingFields.refused | {
        "add_bos_token": RefusedField("the chat template writes the whole prompt", allowed_values=(None, True)),
        "turn_template": RefusedField(TEMPLATE_BY_NAME, allowed_values=EMPTY),
        "name1_instruct": RefusedField(TEMPLATE_BY_NAME, allowed_values=EMPTY),
        "name2_instruct": RefusedField(TEMPLATE_BY_NAME, allowed_values=EMPTY),
    }
    ignored: ClassVar = SamplingFields.ignored | {
        "character": NO_CHARACTERS,
        "your_name": NO_CHARACTERS,
        "name1": NO_CHARACTERS,
        "name2": NO_CHARACTERS,
        "greeting": NO_CHARACTERS,
        "chat_instruct_command": NO_CHARACTERS,
        "chat-instruct_command": NO_CHARACTERS,
    }

    def turns(self) -> ChatTurns:
        """Return all turns, including the one to answer. Raises InvalidRequest if there is nothing to answer."""
        history = self.history or History()
        internal = history.internal or []
        visible = internal if history.visible is None else history.visible
        if len(visible) != len(internal):
            message = f"history.visible has {len(visible)} turns, but history.internal has {len(internal)}."
            raise InvalidRequest(message, param="history.visible")
        if self.regenerate and self.continue_:
            raise InvalidRequest("regenerate and _continue cannot be combined.", param="_continue")
        if not self._last_turn_field:
            new = [self.user_input or "", ""]
            turns = ChatTurns([*internal, new], [*visible, new])
        elif not internal:
            raise InvalidRequest(f"{self._last_turn_field} requires a turn in history.internal.", param=self._last_turn_field)
        elif self.regenerate:
            turns = ChatTurns(_without_answer(internal), _without_answer(visible))
        else:
            turns = ChatTurns(internal, visible)
        if turns.internal[-1][0] in ("", GREETING):
            param = self._last_turn_field or "user_input"
            raise InvalidRequest(f"{param}: there is no message of the user to answer.", param=param)
        return turns

    def to_chat(self, model: str, gateway: Gateway, turns: ChatTurns) -> ChatRequest:
        """Return the gateway's request to `model`. Raises GatewayError."""
        return ChatRequest(
            model=model,
            messages=(*self._system_message(), *self._messages(turns.internal, uses_all_images(self.add_all_images_to_prompt, gateway))),
            param="history",
            template=self._template(),
            continue_last=bool(turns.internal[-1][1]),
            sampling=self.sampling(gateway.model(model).tokenizer),
            stream=True,
        )

    @property
    def _last_turn_field(self) -> str:
        """The name of the field that asks to answer the history's last turn. Empty if the request has a new turn."""
        return "regenerate" if self.regenerate else "_continue" if self.continue_ else ""

    def _system_message(self) -> Iterator[Message]:
        context = (self.context if self.mode != "instruct" else None) or self.context_instruct
        if context:
            yield Message("system", (Text(context),))

    def _messages(self, turns: list[list[str]], all_images: bool) -> Iterator[Message]:
        paths = [f"history.internal[{index}][0]" for index in range(len(turns))]
        if not self._last_turn_field:
            paths[-1] = "user_input"
        questions = {path: question for path, (question, _) in zip(paths, turns, strict=True)}
        split = split_at_images(questions, all_images=all_images)
        for path, (question, answer) in zip(paths, turns, strict=True):
            if question not in ("", GREETING):
                yield _question(question, split[path])
            if answer:
                yield Message("assistant", (Text(answer),))

    def _template(self) -> str | None:
        name = self.instruction_template
        if name in (None, "", "None"):
            return None
        if name not in TEMPLATES:
            message = f"instruction_template: there is no template {name[:50]!r}; the templates are {', '.join(TEMPLATES)}."
            raise InvalidRequest(message, param="instruction_template")
        return TEMPLATES[name]


def _question(question: str, parts: list[str | ImageUrl]) -> Message:
    """Return a user's message. `parts`: its texts and the images between them.

    An image after a text stays there. Images before the text are left to the chat template, which separates them from the text. Spaces
    around this text are removed if the question had `<img>` tags.
    """
    content = tuple(Text(part) if isinstance(part, str) else part for part in parts if part)
    if has_text_before_image(content):
        return Message("user", content, images_in_place=True)
    images = tuple(part for part in parts if isinstance(part, ImageUrl))
    text = "".join(part for part in parts if isinstance(part, str))
    if text != question:
        text = text.strip()
    return Message("user", (*images, Text(text)) if text else images)
