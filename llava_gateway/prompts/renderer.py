"""From messages to token ids, through the model's own chat template or a built-in one.

The model's template is rendered as Hugging Face's processor renders it. A client's text can never become an image, a video or a control
token. Where a text contains a control token (`<image>`, `</s>`), a Unicode noncharacter splits it before the template sees the text. The
tokens of the noncharacter are removed before the engine gets the prompt.

If the model was trained with `<im_start>` and `<im_end>` around each image, every prompt that is a text gets them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava_gateway.errors import EngineStartError, InvalidRequest, context_length_exceeded
from llava_gateway.model_info import ModelInfo
from llava_gateway.prompts.answer_tokens import AnswerTokens
from llava_gateway.prompts.image_markers import END, START, image_markers
from llava_gateway.prompts.merge import merge_turns
from llava_gateway.prompts.templates import BUILT_IN, Template
from llava_gateway.prompts.tools import add_tool_fields, as_text, template_tools, tojson
from llava_gateway.settings import ImageStartEnd
from llava_gateway.types import (
    ChatRequest,
    CompletionRequest,
    Message,
    Request,
    Text,
    Tool,
    ToolChoice,
    VideoUrl,
)

SEPARATOR = "\ufdd0"
"""Splits control tokens in texts. Noncharacters are for internal use and never for interchange (Unicode, section 23.7)."""

RESERVED_KWARGS = {"messages", "chat_template", "add_generation_prompt", "continue_final_message", "tools", "documents"}
"""Variables of a chat template that a client may not set. Requests have fields for some of them."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as text and as token ids."""

    text: str
    """Empty if the client sent token ids."""
    token_ids: list[int]
    """With one image token per image and one video token per video; `PromptRenderer.expand` expands them."""
    stop: tuple[str, ...] = ()
    """The template's stop strings."""


class PromptRenderer:
    """Renders the prompts of one model.

    A renderer needs the model's description, and no engine:

        renderer = PromptRenderer(model)
        prompt = renderer.chat([Message("user", (ImageUrl(url, "image"), Text("What is in this image?")))])
        token_ids = renderer.expand(prompt.token_ids, [576])
    """

    def __init__(self, model: ModelInfo, template: Template | None = None, image_start_end: ImageStartEnd = "auto") -> None:
        """`template`: replaces the model's own template. `image_start_end`: as in the setting with this name.

        Raises EngineStartError if the template is not valid Jinja, or if the model cannot have its images as `image_start_end` says.
        """
        self._tokenizer = model.tokenizer
        self._image_markers = image_markers(model, image_start_end)
        controls = model.tokenizer.control_tokens | {model.image_token}
        if model.video_token:
            controls |= {model.video_token}
        if self._image_markers:
            controls |= {START, END}
        self._controls = controls
        self._control = re.compile("|".join(re.escape(control) for control in sorted(controls, key=len, reverse=True)))
        self._longest_control = max(map(len, controls))
        self._context_length = model.context_length
        self._max_chars = model.context_length * model.tokenizer.longest_token
        self.image_id = model.tokenizer.encode(model.image_token, add_special_tokens=False).ids[0]
        self.video_id: int | None = None
        """None: the model takes no videos."""
        if model.video_token:
            self.video_id = model.tokenizer.encode(model.video_token, add_special_tokens=False).ids[0]
        self._bos = model.special_tokens.get("bos_token", "")
        self._placeholders = {"image": model.image_token, "video": model.video_token}
        self._variables = {**model.special_tokens, "image_token": model.image_token}
        if model.video_token:
            self._variables["video_token"] = model.video_token
        self._default = _compile(template or Template(model.chat_template))
        self._named: dict[str, _Compiled] = {}
        self._answer_tokens: dict[str | None, AnswerTokens] = {}

    def render(self, request: Request, template: str | None = None) -> RenderedPrompt:
        """Return the prompt of a request. Raises InvalidRequest.

        `template`: the name of a built-in template, instead of the default one.
        """
        if isinstance(request, ChatRequest):
            return self.chat(
                request.messages,
                template,
                continue_last=request.continue_last,
                param=request.param,
                tools=request.tools,
                tool_choice=request.tool_choice,
                template_kwargs=request.template_kwargs,
            )
        return self.completion(request)

    def renders_tools(self, template: str | None = None) -> bool:
        """Return whether a template, by its name as in `render`, shows the definitions of tools by itself."""
        return self._compiled(template).renders_tools

    def source(self, template: str | None = None) -> str:
        """Return the Jinja source of a template, by its name as in `render`."""
        return self._compiled(template).template.jinja

    def answer_tokens(self, template: str | None = None) -> AnswerTokens:
        """Return the tokens with which answers begin after the prompts of a template, by its name as in `render`."""
        if template not in self._answer_tokens:
            prompt = self.chat((Message("user", (Text("Hello"),)),), template).text
            self._answer_tokens[template] = AnswerTokens(self._tokenizer, prompt)
        return self._answer_tokens[template]

    def chat(
        self,
        messages: Sequence[Message],
        template: str | None = None,
        *,
        continue_last: bool = False,
        param: str = "messages",
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> RenderedPrompt:
        """Return the prompt for the assistant's next message. Consecutive messages of one role become one turn.

        `template`: the name of a built-in template. `continue_last`: the prompt asks for more of the last message, which must be the
        assistant's. `param`: the path of the messages in the client's request. `tools`: are shown to the model, in the system message if
        the template does not render tools. `template_kwargs`: more variables for the template. Raises InvalidRequest if the template
        refuses the messages or a variable, and ContextLengthExceeded for texts that cannot fit.
        """
        compiled = self._compiled(template)
        if not compiled.renders_tools:
            messages, tools = as_text(messages, tools, tool_choice, compiled.template.system), ()
        messages = merge_turns(messages)
        if continue_last and not all(isinstance(part, Text) for part in messages[-1].content):
            raise InvalidRequest("A message that the answer continues may have no images and no videos.", param=param)
        texts = [part.text for message in messages for part in message.content if isinstance(part, Text)]
        if compiled.renders_tools:
            texts += [text for tool in tools for text in (tool.description, tool.parameters)]
            texts += [call.arguments for message in messages for call in message.tool_calls]
        self._check_length(texts, param)
        variables = self._template_variables(compiled, template_kwargs)
        try:
            text = self._wrap_images(self._text(compiled, messages, continue_last, tools, variables))
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidRequest(f"The chat template refuses these messages: {error}", param=param) from error
        encoding = self._tokenizer.encode(text, add_special_tokens=self._wants_special_tokens(text))
        token_ids = encoding.ids
        if SEPARATOR in text:
            token_ids = [token for token, (start, end) in zip(token_ids, encoding.offsets, strict=True) if text[start:end] != SEPARATOR]
            text = text.replace(SEPARATOR, "")
        media = [part for message in messages for part in message.content if not isinstance(part, Text)]
        videos = sum(isinstance(part, VideoUrl) for part in media)
        if token_ids.count(self.image_id) != len(media) - videos:
            raise InvalidRequest("The chat template does not show all images of these messages.", param=param)
        if self._count_videos(token_ids) != videos:
            raise InvalidRequest("The chat template does not show all videos of these messages.", param=param)
        return RenderedPrompt(text, token_ids, compiled.template.stop)

    def completion(self, request: CompletionRequest) -> RenderedPrompt:
        """Return the prompt that the client has written out, with one placeholder (`<image>`, `<video>`) per image and video.

        Token ids stay as they are.

        Raises InvalidRequest if the prompt is empty, if a token id is not one of the model's, or if the numbers of images or videos and of
        their placeholders differ. Raises ContextLengthExceeded for a prompt that cannot fit.
        """
        prompt, images, param = request.prompt, len(request.images), request.param
        if isinstance(prompt, str):
            self._check_length((prompt,), param)
            prompt = self._wrap_images(prompt)
            add_special_tokens = request.add_special_tokens and self._wants_special_tokens(prompt)
            token_ids = self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids
        else:
            token_ids = list(prompt)
            if len(token_ids) > self._context_length:
                excess = f"your prompt resulted in {len(token_ids)} tokens"
                raise context_length_exceeded(self._context_length, excess, "prompt", param=param)
            self._tokenizer.check(token_ids, param)
        if not token_ids:
            raise InvalidRequest("The prompt is empty.", param=param)
        if (placeholders := token_ids.count(self.image_id)) != images:
            raise InvalidRequest(
                f"The prompt has {placeholders} image placeholders, and there are {images} images. Each image takes one placeholder.",
                param="images",
            )
        if (placeholders := self._count_videos(token_ids)) != len(request.videos):
            raise InvalidRequest(
                f"The prompt has {placeholders} video placeholders, and there are {len(request.videos)} videos. "
                "Each video takes one placeholder.",
                param="videos",
            )
        return RenderedPrompt(prompt if isinstance(prompt, str) else "", token_ids)

    def expand(self, token_ids: Sequence[int], image_tokens: Iterable[int], video_tokens: Iterable[int] = ()) -> list[int]:
        """Return the token ids as the engine reads them.

        `image_tokens`, `video_tokens`: the number of tokens for each image and for each video, in order.
        """
        images, videos, expanded = iter(image_tokens), iter(video_tokens), list[int]()
        for token_id in token_ids:
            count = next(images) if token_id == self.image_id else next(videos) if token_id == self.video_id else 1
            expanded += [token_id] * count
        return expanded

    def _count_videos(self, token_ids: list[int]) -> int:
        """Return the number of video tokens; 0 if the model takes no videos."""
        return 0 if self.video_id is None else token_ids.count(self.video_id)

    def _compiled(self, template: str | None) -> "_Compiled":
        if template is None:
            return self._default
        if template not in self._named:
            self._named[template] = _compile(BUILT_IN[template])
        return self._named[template]

    def _template_variables(self, compiled: "_Compiled", template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables that the template reads. Raises InvalidRequest for variables that the server sets, and for other values than
        booleans: a text could become a control token, and a number could make the prompt very long.
        """
        for name, value in template_kwargs.items():
            param = f"chat_template_kwargs.{name[:50]}"
            if name in RESERVED_KWARGS or name in self._variables:
                raise InvalidRequest(f"{param}: the server sets this variable of the chat template.", param=param)
            if name in compiled.variables and not isinstance(value, bool | None):
                raise InvalidRequest(f"{param}: must be true or false.", param=param)
        return {name: template_kwargs[name] for name in compiled.variables & template_kwargs.keys()}

    def _text(
        self, compiled: "_Compiled", messages: Sequence[Message], continue_last: bool, tools: Sequence[Tool], variables: dict[str, Any]
    ) -> str:
        """Render the messages, with a SEPARATOR in each control token of a client's text. Raises TemplateError."""
        plain = [self._plain(message, keeps_order=compiled.keeps_order) for message in messages]
        if compiled.renders_tools:
            add_tool_fields(plain, messages, self._defuse)
            variables = variables | {"tools": template_tools(tools, self._defuse)}
        if compiled.template.system and not any(message.role == "system" for message in messages):
            plain.insert(0, {"role": "system", "content": [{"type": "text", "text": compiled.template.system}]})
        last_text = "".join(part["text"] for part in plain.pop()["content"]) if continue_last else ""
        text = compiled.jinja.render(messages=plain, add_generation_prompt=True, **self._variables, **variables)
        return text + ("" if not last_text or text[-1:].isspace() else " ") + last_text

    def _plain(self, message: Message, *, keeps_order: bool) -> dict[str, Any]:
        """Return a message as Hugging Face's templates expect it, with its control tokens split.

        `keeps_order`: the template shows texts and images in their order. Otherwise it gets one text that has the images in it, if a text
        stands between images: moved to the front, "Image 1:" and "Image 2:" would say nothing.
        """
        parts: list[dict[str, str]] = []
        tail = ""
        for part in message.content:
            if not isinstance(part, Text):
                parts.append({"type": "video" if isinstance(part, VideoUrl) else "image"})
                continue
            text = self._split_controls(part.text)
            if self._control.search(tail + text[: self._longest_control]):  # across parts, which a template may join
                text = SEPARATOR + text
            tail = (tail + text)[-self._longest_control :]
            parts.append({"type": "text", "text": text})
        in_place = message.images_in_place
        if in_place or (not keeps_order and _has_text_between_media(message)):
            texts = [part.get("text") or self._placeholders.get(part["type"], "") for part in parts]
            parts = [{"type": "text", "text": ("" if in_place else "\n").join(texts)}]
        return {"role": message.role, "content": parts}

    def _split_controls(self, text: str) -> str:
        """Put a SEPARATOR after the first character of each control token."""
        if SEPARATOR in text:
            text = text.replace(SEPARATOR, "")
        return self._control.sub(lambda found: found[0][0] + SEPARATOR + found[0][1:], text)

    def _defuse(self, text: str) -> str:
        """Split the control tokens in a text that a template may put between other characters, such as the name of a tool."""
        is_part = text and any(text in control for control in self._controls)
        return (SEPARATOR if is_part else "") + self._split_controls(text)

    def _wrap_images(self, text: str) -> str:
        """Return the prompt with `<im_start>` and `<im_end>` around each image, if the model was trained with them."""
        return self._image_markers.wrap(text) if self._image_markers else text

    def _wants_special_tokens(self, text: str) -> bool:
        """Return whether the tokenizer must add `<s>`. A text may already begin with it."""
        return not (self._bos and text.startswith(self._bos))

    def _check_length(self, texts: Iterable[str], param: str) -> None:
        """Raise ContextLengthExceeded if the texts cannot fit the context. The tokenizer would take seconds for megabytes of text."""
        chars = sum(map(len, texts))
        if chars > self._max_chars:
            excess = f"your text of {chars} characters resulted in more tokens than that"
            raise context_length_exceeded(self._context_length, excess, "text", param=param)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A template and its compiled Jinja."""

    template: Template
    jinja: jinja2.Template
    variables: Set[str]
    """The variables that the template reads."""
    keeps_order: bool
    """Whether the template shows the texts and images of a message in their order. Most templates show all images first."""

    @property
    def renders_tools(self) -> bool:
        """Whether the template shows tools to the model by itself."""
        return "tools" in self.variables


def _compile(template: Template) -> _Compiled:
    """Compile a template. Raises EngineStartError if it is not valid Jinja."""
    environment = _environment()
    try:
        variables = meta.find_undeclared_variables(environment.parse(template.jinja)) - environment.globals.keys()
        jinja = environment.from_string(template.jinja)
    except jinja2.TemplateSyntaxError as error:
        raise EngineStartError(f"the chat template is not valid Jinja: {error.message} (line {error.lineno})") from error
    return _Compiled(template, jinja, variables, _keeps_order(jinja))


def _has_text_between_media(message: Message) -> bool:
    """Return whether a text stands between two images or videos, so that it says something about one of them."""
    places = [index for index, part in enumerate(message.content) if not isinstance(part, Text)]
    return len(places) > 1 and any(isinstance(part, Text) and part.text.strip() for part in message.content[places[0] : places[-1]])


def _keeps_order(jinja: jinja2.Template) -> bool:
    """Return whether a template shows an image between the texts between which it stands."""
    content = [{"type": "text", "text": "before"}, {"type": "image"}, {"type": "text", "text": "after"}]
    try:
        text = jinja.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError):  # it wants other messages
        return False
    return bool(text.partition("before")[2].partition("after")[0].strip())


class _Generation(Extension):
    """Accepts `{% generation %}` blocks, which mark the model's messages for training in transformers' templates. Renders their content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return a sandbox with the settings and functions of Hugging Face's templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = tojson
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)
