"""The request bodies of Ollama's API, and their translation to the gateway's requests.

They are declared after `api/types.go` of Ollama.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from llava_gateway.api.ollama.context import MAX_CONTEXT, decode_context
from llava_gateway.api.ollama.messages import Images, Messages, to_messages, to_parts, to_raw_prompt
from llava_gateway.api.ollama.options import Options, to_structured_output
from llava_gateway.api.schema import TAG_PREFIX, RefusedField, RequestBody, StrictModel
from llava_gateway.api.tools import MAX_TOOLS, NAME_FORM, ToolDefinition, check_name, to_tools
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import built_in
from llava_gateway.types import ChatRequest, CompletionRequest, Message, SamplingParams, Text, has_text_before_image

MAX_NAME = 64
MAX_OPTIONS = 100
MODEL = "the name of a served model, with or without `:latest`; default: the only model, if only one is served"
NO_IMAGES = "the model makes no images"
ALWAYS_LOADED = "the model is always loaded"
NEVER_TRUNCATED = "a prompt that does not fit the context is refused and never truncated"
_Format = Annotated[
    Annotated[str, Tag(TAG_PREFIX + "string")] | Annotated[dict[str, Any], Tag(TAG_PREFIX + "object")],
    Discriminator(lambda value: TAG_PREFIX + ("object" if isinstance(value, dict) else "string")),
]


class GenerationFields(RequestBody):
    """The fields that `/api/chat` and `/api/generate` share."""

    model: str | None = Field(None, description=MODEL)
    stream: bool | None = Field(None, description="false: one JSON object; default true, a stream with a JSON object in each line")
    format: _Format | None = Field(None, description="`json`: any JSON object; a JSON Schema: the answer always follows the schema")
    options: Annotated[dict[str, Any], Field(max_length=MAX_OPTIONS)] | None = Field(
        None, description="the sampling parameters, see Options"
    )
    logprobs: bool | None = Field(None, description="return the log probabilities of the answer's tokens")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="return the 0 to 20 likeliest tokens at each position of the answer; only with logprobs"
    )

    refused: ClassVar = {"_debug_render_only": RefusedField("every request is answered; `/tokenize` returns the tokens of a prompt")}
    ignored: ClassVar = {
        "keep_alive": ALWAYS_LOADED,
        "think": "the model has no reasoning step",
        "truncate": NEVER_TRUNCATED,
        "shift": "an answer ends where the context ends",
    }

    @property
    def streams(self) -> bool:
        """Whether the answer is sent as a stream, which is the default."""
        return self.stream is not False

    def sampling(self) -> SamplingParams:
        """Return the gateway's sampling parameters. Raises InvalidRequest."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs requires logprobs: true.", param="top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return Options.parse(self.options or {}).sampling(to_structured_output(self.format), logprobs)


class FunctionDefinition(StrictModel):
    name: Annotated[str, AfterValidator(lambda name: check_name(name, MAX_NAME))]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OllamaTool(StrictModel):
    type: Literal["function"] | None = None
    function: FunctionDefinition

    def definition(self, path: str) -> ToolDefinition:
        """Return the tool as all APIs declare tools. `path`: of the tool in the request."""
        function, path = self.function, f"{path}.function"
        return ToolDefinition(function.name, function.description, function.parameters, path, f"{path}.parameters")


class ChatBody(GenerationFields):
    """`POST /api/chat`."""

    messages: Messages | None = Field(
        None,
        description="the roles are system, user, assistant and tool; all may have images; an answer continues a last message of the "
        "assistant; without messages the answer is empty",
    )
    tools: list[OllamaTool] | None = Field(
        None,
        max_length=MAX_TOOLS,
        fail_fast=True,
        description=f"up to {MAX_TOOLS} functions that the model may call; a name has {NAME_FORM.format(MAX_NAME)}",
    )

    def to_chat(self, model: str) -> ChatRequest:
        """Return the gateway's request to `model`. Raises InvalidRequest."""
        messages = to_messages(self.messages or ())
        last = messages[-1]
        return ChatRequest(
            model=model,
            messages=messages,
            continue_last=last.role == "assistant" and bool(last.content) and not last.tool_calls,
            tools=to_tools(tool.definition(f"tools[{index}]") for index, tool in enumerate(self.tools or ())),
            sampling=self.sampling(),
            stream=True,
        )


class GenerateBody(GenerationFields):
    """`POST /api/generate`."""

    prompt: str | None = Field(None, description="the user's message; without a prompt and images the answer is empty")
    images: Images | None = Field(None, description="image files in base64; `[img]` in the prompt is the place of the next image")
    system: str | None = Field(None, description="the system message")
    context: list[int] | None = Field(
        None, max_length=MAX_CONTEXT, fail_fast=True, description="the field `context` of an earlier answer, to continue its conversation"
    )
    template: str | None = Field(None, description="the name of a built-in template (docs/dialects.md); templates in Go's form are refused")
    raw: bool | None = Field(
        None, description="true: the prompt goes to the model unchanged, control tokens included; not with system, template or context"
    )

    refused: ClassVar = GenerationFields.refused | {
        "suffix": RefusedField("the model cannot fill in text before a suffix"),
        "width": RefusedField(NO_IMAGES),
        "height": RefusedField(NO_IMAGES),
        "steps": RefusedField(NO_IMAGES),
    }

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer. Ollama's clients load a model by such a request."""
        return not self.prompt and not self.images

    def to_chat(self, model: str) -> ChatRequest:
        """Return the gateway's request to `model`, for a prompt that the chat template renders. Raises InvalidRequest."""
        if self.template:
            built_in(self.template, "template")
        earlier = decode_context(self.context or ())
        if self.system:
            earlier = (Message("system", (Text(self.system),)), *(message for message in earlier if message.role != "system"))
        parts = to_parts(self.prompt or "", self.images or (), "images")
        return ChatRequest(
            model=model,
            messages=(*earlier, Message("user", parts, images_in_place=has_text_before_image(parts))),
            param="prompt",
            template=self.template or None,
            sampling=self.sampling(),
            stream=True,
        )

    def to_completion(self, model: str, image_token: str) -> CompletionRequest:
        """Return the gateway's request to `model`, for a raw prompt. `image_token`: the model's. Raises InvalidRequest."""
        if self.template or self.system or self.context:
            raise InvalidRequest("raw cannot be combined with template, system or context.", param="raw")
        prompt, images = to_raw_prompt(self.prompt or "", self.images or (), image_token)
        return CompletionRequest(model=model, prompt=prompt, images=images, sampling=self.sampling(), stream=True)


class ModelBody(RequestBody):
    """The bodies of requests about a model: `/api/show` and `/api/pull`."""

    model: str | None = Field(None, description=MODEL)
    name: str | None = Field(None, description="the older name of model, which is used if both are sent")


class ShowBody(ModelBody):
    """`POST /api/show`."""

    ignored: ClassVar = {
        "verbose": "the description is always complete",
        "system": "a model is described, and not changed",
        "template": "a model is described, and not changed",
        "options": "a model is described, and not changed",
    }


class PullBody(ModelBody):
    """`POST /api/pull`."""

    stream: bool | None = Field(None, description="false: one JSON object; default true, a stream with a JSON object in each line")

    ignored: ClassVar = {"insecure": "nothing is downloaded", "username": "nothing is downloaded", "password": "nothing is downloaded"}
