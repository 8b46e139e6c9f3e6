"""Chats whose turns the client keeps: `/api/v1/chat` and `/api/v1/chat-stream`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llava_gateway.api.schema import Refused, RequestBody, Strict
from llava_gateway.api.text_generation_webui.sampling import ALL_IMAGES, EMPTY, SamplingFields
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import BUILT_IN
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import ChatRequest, CompletionRequest, ImageUrl, Message, SamplingParams, Text

IMG_TAG = "<img src="
IMG = re.compile(IMG_TAG + r"""["'](data:[^"'<>]*+)["'][^<>]*+>""")
MAX_IMAGES = 1024
"""Of a request, in all its texts."""


def take_apart(texts: Mapping[str, str], *, every: bool) -> dict[str, list[str | ImageUrl]]:
    """Texts, by the names of their fields, as pieces of text and the images between them. Unless `every`, the last image of all is the
    only one: the others' tags are left out. Tags without a `data:` URI are text. InvalidRequest for too many."""
    if sum(text.count(IMG_TAG) for text in texts.values()) > MAX_IMAGES:
        param = next(name for name, text in texts.items() if IMG_TAG in text)
        raise InvalidRequest(f"{param}: there may be at most {MAX_IMAGES} images.", param=param)
    split = {name: IMG.split(text) for name, text in texts.items()}  # every second piece is a URI
    left_out = 0 if every else sum(len(pieces) // 2 for pieces in split.values()) - 1
    taken: dict[str, list[str | ImageUrl]] = {}
    for name, pieces in split.items():
        taken[name] = []
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                taken[name].append(piece)
            elif left_out > 0:
                left_out -= 1
            else:
                taken[name].append(ImageUrl(piece, name))
    return taken


GREETING = "<|BEGIN-VISIBLE-CHAT|>"
"""What the user's part is where the model has greeted first."""
MAX_TURNS = 1024
TEMPLATES = {
    "LLaVA": "llava_v1",
    "LLaVA-v1": "llava_v1",
    "Vicuna-v1.1": "vicuna_v1",
    "Llama-v2": "llava_llama_2",
    "Mistral": "mistral_instruct",
    "ChatML": "chatml",
} | {name: name for name in BUILT_IN}
"""The dialect's names of conversation templates, and our own."""
NO_CHARACTERS = "no character is played"

_Turn = Annotated[list[str], Field(min_length=2, max_length=2)]
_Turns = Annotated[list[_Turn], Field(max_length=MAX_TURNS, fail_fast=True)]


class History(Strict):
    internal: _Turns | None = Field(None, description="turns as the model gets them: pairs of what the user said and what it answered")
    visible: _Turns | None = Field(None, description="turns as the client shows them, as many; default: the same")


@dataclass(frozen=True, slots=True)
class Turns:
    """All turns up to the one that is answered, as the model gets them and as the client shows them. The second half of the last one is
    what its answer begins with."""

    internal: list[list[str]]
    visible: list[list[str]]

    @property
    def length(self) -> int:
        """Characters of a history."""
        return sum(len(asked) + len(answered) for turns in (self.internal, self.visible) for asked, answered in turns)

    def history(self, text: str) -> dict[str, Any]:
        """With so much of the answer."""
        return {"internal": _with(self.internal, text), "visible": _with(self.visible, text)}


def _with(turns: list[list[str]], text: str) -> list[list[str]]:
    *earlier, (asked, begun) = turns
    return [*earlier, [asked, begun + text]]


class ChatBody(SamplingFields):
    """`POST /api/v1/chat`, and a message to `/api/v1/chat-stream`."""

    user_input: str | None = Field(
        None, description='what the user says now, pictures as `<img src="data:...">`; of no effect with regenerate and _continue'
    )
    history: History | None = Field(None, description="the turns before; default: none")
    regenerate: bool | None = Field(None, description="answer the last turn of the history again; default false")
    continue_: bool | None = Field(None, alias="_continue", description="go on with the last answer of the history; default false")
    mode: Literal["instruct", "chat-instruct", "chat"] | None = Field(
        None, description="`instruct`, `chat-instruct` or `chat`, which all use the instruction template; default `chat`"
    )
    instruction_template: str | None = Field(
        None, description=f"the conversation's form: {', '.join(f'`{name}`' for name in TEMPLATES)}; default, and `None`: the server's own"
    )
    context_instruct: str | None = Field(None, description="the system message; default: the template's")
    context: str | None = Field(None, description="the system message in the modes chat and chat-instruct, instead of context_instruct")
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)

    refused: ClassVar = SamplingFields.refused | {
        "add_bos_token": Refused("the prompt is the template's", unless=(None, True)),
        "turn_template": Refused("choose an instruction_template by its name", unless=EMPTY),
        "name1_instruct": Refused("choose an instruction_template by its name", unless=EMPTY),
        "name2_instruct": Refused("choose an instruction_template by its name", unless=EMPTY),
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

    def turns(self) -> Turns:
        """InvalidRequest if there is nothing to answer."""
        history = self.history or History()
        internal = history.internal or []
        visible = internal if history.visible is None else history.visible
        if len(visible) != len(internal):
            why = f"history.visible has {len(visible)} turns, and history.internal {len(internal)}."
            raise InvalidRequest(why, param="history.visible")
        if self.regenerate and self.continue_:
            raise InvalidRequest("regenerate and _continue exclude each other.", param="_continue")
        if not self._again:
            new = [self.user_input or "", ""]
            turns = Turns([*internal, new], [*visible, new])
        elif not internal:
            raise InvalidRequest(f"{self._again} needs a turn in history.internal.", param=self._again)
        elif self.regenerate:
            turns = Turns(_unanswered(internal), _unanswered(visible))
        else:
            turns = Turns(internal, visible)
        if turns.internal[-1][0] in ("", GREETING):
            param = self._again or "user_input"
            raise InvalidRequest(f"{param}: the user has said nothing that could be answered.", param=param)
        return turns

    def to_chat(self, model: str, gateway: Gateway, turns: Turns) -> ChatRequest:
        """Raises GatewayError."""
        return ChatRequest(
            model=model,
            messages=(*self._system(), *self._messages(turns.internal)),
            param="history",
            template=self._template(),
            continue_last=bool(turns.internal[-1][1]),
            sampling=self.sampling(gateway.model(model).tokenizer),
            stream=True,
        )

    @property
    def _again(self) -> str:
        """The field that asks for the last turn of the history; empty for a new turn."""
        return "regenerate" if self.regenerate else "_continue" if self.continue_ else ""

    def _system(self) -> Iterator[Message]:
        context = (self.context if self.mode != "instruct" else None) or self.context_instruct
        if context:
            yield Message("system", (Text(context),))

    def _messages(self, turns: list[list[str]]) -> Iterator[Message]:
        names = [f"history.internal[{index}][0]" for index in range(len(turns))]
        if not self._again:
            names[-1] = "user_input"
        said = {name: asked for name, (asked, _) in zip(names, turns, strict=True)}
        taken = take_apart(said, every=bool(self.add_all_images_to_prompt))
        for name, (asked, answered) in zip(names, turns, strict=True):
            if asked not in ("", GREETING):
                yield Message("user", _content(asked, taken[name]))
            if answered:
                yield Message("assistant", (Text(answered),))

    def _template(self) -> str | None:
        name = self.instruction_template
        if name in (None, "", "None"):
            return None
        if name not in TEMPLATES:
            why = f"instruction_template: there is no {name[:50]!r} here; there are {', '.join(TEMPLATES)}."
            raise InvalidRequest(why, param="instruction_template")
        return TEMPLATES[name]


def _unanswered(turns: list[list[str]]) -> list[list[str]]:
    return [*turns[:-1], [turns[-1][0], ""]]


def _content(asked: str, pieces: list[str | ImageUrl]) -> tuple[Text | ImageUrl, ...]:
    """Images, then text, which templates write in this order anyway. Where tags have been, no blank is left around the text."""
    images = (piece for piece in pieces if isinstance(piece, ImageUrl))
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    if text != asked:
        text = text.strip()
    return (*images, Text(text)) if text else tuple(images)


PROMPT = 'text that goes to the model as it is, control tokens and all; pictures in place, as `<img src="data:image/jpeg;base64,...">`'
BOS = "begin the prompt with the model's `<s>`; default true"


class GenerateBody(SamplingFields):
    """`POST /api/v1/generate`, and a message to `/api/v1/stream`."""

    prompt: str = Field(description=PROMPT)
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)
    add_bos_token: bool | None = Field(None, description=BOS)

    def to_completion(self, model: str, gateway: Gateway) -> CompletionRequest:
        """Raises GatewayError."""
        sampling = self.sampling(gateway.model(model).tokenizer)
        return _completion(model, gateway, self.prompt, self.add_all_images_to_prompt, self.add_bos_token, sampling)


class TokenCountBody(RequestBody):
    """`POST /api/v1/token-count`."""

    prompt: str = Field(description="as /api/v1/generate takes it; each picture counts in full, and none is opened")
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)
    add_bos_token: bool | None = Field(None, description=BOS)

    max_text: ClassVar = None

    def to_completion(self, model: str, gateway: Gateway) -> CompletionRequest:
        """Raises GatewayError."""
        return _completion(model, gateway, self.prompt, self.add_all_images_to_prompt, self.add_bos_token, SamplingParams())


def _completion(
    model: str, gateway: Gateway, prompt: str, every_image: bool | None, add_bos_token: bool | None, sampling: SamplingParams
) -> CompletionRequest:
    image_token = gateway.model(model).image_token
    pieces = take_apart({"prompt": prompt}, every=bool(every_image))["prompt"]
    images = tuple(piece for piece in pieces if isinstance(piece, ImageUrl))
    text = "".join(piece if isinstance(piece, str) else image_token for piece in pieces)
    if text.count(image_token) != len(images):
        raise InvalidRequest(f'prompt: pictures go in as <img src="data:...">, and {image_token} cannot be written.', param="prompt")
    return CompletionRequest(
        model=model, prompt=text, images=images, add_special_tokens=add_bos_token is not False, sampling=sampling, stream=True
    )
