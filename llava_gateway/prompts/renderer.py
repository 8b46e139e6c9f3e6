"""From messages to token ids, through the model's own chat template, as Hugging Face's processor renders it, or a named one.

Text of a client can never become an image or a control token: wherever it spells one (`<image>`, `</s>`), it is broken apart with a
Unicode noncharacter before the template sees it, and the tokens of that noncharacter are taken out again before the engine does.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava_gateway.errors import ContextLengthExceeded, EngineStartError, InvalidRequest
from llava_gateway.prompts.templates import BUILT_IN, Template
from llava_gateway.types import ChatRequest, CompletionRequest, Message, ModelInfo, Request, Text

SEAM = "\ufdd0"  # noncharacters are for internal use and never for interchange (Unicode, section 23.7)


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    text: str
    """Empty where the client sent token ids."""
    token_ids: list[int]
    """One image token per image."""
    stop: tuple[str, ...] = ()
    """Where the template has answers end."""


class PromptRenderer:
    """Renders the prompts of one model."""

    def __init__(self, model: ModelInfo, template: Template | None = None) -> None:
        """`template`: instead of the model's own. Raises EngineStartError if that is no Jinja."""
        self._tokenizer = model.tokenizer
        controls = model.tokenizer.control_tokens | {model.image_token}
        self._control = re.compile("|".join(re.escape(control) for control in sorted(controls, key=len, reverse=True)))
        self._longest_control = max(map(len, controls))
        self._context_length = model.context_length
        self._max_chars = model.context_length * model.tokenizer.longest_token
        self.image_id = model.tokenizer.encode(model.image_token, add_special_tokens=False).ids[0]
        self._bos = model.special_tokens.get("bos_token", "")
        self._variables = {**model.special_tokens, "image_token": model.image_token}
        self._default = _compile(template or Template(model.chat_template))
        self._named: dict[str, _Compiled] = {}

    def render(self, request: Request, template: str | None = None) -> RenderedPrompt:
        """`template`: the name of a built-in one, instead of the default. Raises InvalidRequest."""
        if isinstance(request, ChatRequest):
            return self.chat(request.messages, template, continue_last=request.continue_last, param=request.param)
        return self.completion(request)

    def chat(
        self, messages: Sequence[Message], template: str | None = None, *, continue_last: bool = False, param: str = "messages"
    ) -> RenderedPrompt:
        """The prompt that asks for the assistant's next message, or, if `continue_last`, for more of the last one, which is the
        assistant's. InvalidRequest if the template refuses the messages."""
        self._check_length((part.text for message in messages for part in message.content if isinstance(part, Text)), param)
        compiled = self._compiled(template)
        try:
            text = self._text(compiled, messages, continue_last)
        except TemplateError as error:
            raise InvalidRequest(f"The chat template refuses these messages: {error}", param=param) from error
        encoding = self._tokenizer.encode(text, add_special_tokens=self._wants_special_tokens(text))
        token_ids = encoding.ids
        if SEAM in text:
            token_ids = [token for token, (start, end) in zip(token_ids, encoding.offsets, strict=True) if text[start:end] != SEAM]
            text = text.replace(SEAM, "")
        images = sum(not isinstance(part, Text) for message in messages for part in message.content)
        if token_ids.count(self.image_id) != images:
            raise InvalidRequest("The chat template does not show all images of these messages.", param=param)
        return RenderedPrompt(text, token_ids, compiled.template.stop)

    def completion(self, request: CompletionRequest) -> RenderedPrompt:
        """A prompt that the client has written out, `<image>` wherever an image goes. InvalidRequest if there is nothing
        in it, if a token id is not the model's, or if images and placeholders are not as many."""
        prompt, images, param = request.prompt, len(request.images), request.param
        if isinstance(prompt, str):
            self._check_length((prompt,), param)
            add_special_tokens = request.add_special_tokens and self._wants_special_tokens(prompt)
            token_ids = self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids
        else:
            token_ids = list(prompt)
            if len(token_ids) > self._context_length:
                raise ContextLengthExceeded(
                    f"The model's context is {self._context_length} tokens, and this prompt has {len(token_ids)}.", param=param
                )
            self._tokenizer.check(token_ids, param)
        if not token_ids:
            raise InvalidRequest("The prompt is empty.", param=param)
        if (placeholders := token_ids.count(self.image_id)) != images:
            raise InvalidRequest(
                f"The prompt has {placeholders} image placeholders, and there are {images} images. Each image takes one placeholder.",
                param="images",
            )
        return RenderedPrompt(prompt if isinstance(prompt, str) else "", token_ids)

    def expand(self, token_ids: Sequence[int], image_tokens: Iterable[int]) -> list[int]:
        """The prompt as the engine reads it, with so many tokens for each of its images."""
        remaining, expanded = iter(image_tokens), list[int]()
        for token_id in token_ids:
            expanded += [token_id] * (next(remaining) if token_id == self.image_id else 1)
        return expanded

    def _compiled(self, template: str | None) -> "_Compiled":
        if template is None:
            return self._default
        if template not in self._named:
            self._named[template] = _compile(BUILT_IN[template])
        return self._named[template]

    def _text(self, compiled: "_Compiled", messages: Sequence[Message], continue_last: bool) -> str:
        """With a SEAM in each control token that a client has spelt. Raises TemplateError."""
        plain = [self._plain(message) for message in messages]
        if compiled.template.system and not any(message.role == "system" for message in messages):
            plain.insert(0, {"role": "system", "content": [{"type": "text", "text": compiled.template.system}]})
        begun = "".join(part["text"] for part in plain.pop()["content"]) if continue_last else ""
        text = compiled.jinja.render(messages=plain, add_generation_prompt=True, **self._variables)
        return text + ("" if not begun or text[-1:].isspace() else " ") + begun

    def _plain(self, message: Message) -> dict[str, Any]:
        """A message as Hugging Face's templates expect it."""
        parts: list[dict[str, str]] = []
        tail = ""
        for part in message.content:
            if not isinstance(part, Text):
                parts.append({"type": "image"})
                continue
            text = self._defuse(part.text)
            if self._control.search(tail + text[: self._longest_control]):  # spelt across parts, which a template may join
                text = SEAM + text
            tail = (tail + text)[-self._longest_control :]
            parts.append({"type": "text", "text": text})
        return {"role": message.role, "content": parts}

    def _defuse(self, text: str) -> str:
        if SEAM in text:
            text = text.replace(SEAM, "")
        return self._control.sub(lambda found: found[0][0] + SEAM + found[0][1:], text)

    def _wants_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer is to begin the prompt with `<s>`: not where the text does so itself."""
        return not (self._bos and text.startswith(self._bos))

    def _check_length(self, texts: Iterable[str], param: str) -> None:
        """Text that cannot fit the context is refused before it costs anything: megabytes would keep the tokenizer busy for seconds."""
        chars = sum(map(len, texts))
        if chars > self._max_chars:
            raise ContextLengthExceeded(
                f"The model's context is {self._context_length} tokens, and this text has {chars} characters.", param=param
            )


@dataclass(frozen=True, slots=True)
class _Compiled:
    template: Template
    jinja: jinja2.Template


def _compile(template: Template) -> _Compiled:
    try:
        return _Compiled(template, _environment().from_string(template.jinja))
    except jinja2.TemplateSyntaxError as error:
        raise EngineStartError(f"the chat template is not Jinja: {error.message} (line {error.lineno})") from error


class _Generation(Extension):
    """`{% generation %}` marks what a model says, for training; here it is transparent (as in transformers' templates)."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals["raise_exception"] = _raise
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)
