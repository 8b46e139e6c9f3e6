"""The request body of `POST /v1/responses`, and its translation to the gateway's request.

It is declared after OpenAI's `CreateResponse`.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from llava_gateway.api.openai.function_tools import (
    CHOICE_BY_TYPE,
    PARALLEL_TOOL_CALLS,
    TOOL_CHOICE,
    TOOLS,
    AnyToolChoice,
    FunctionDefinition,
    FunctionType,
)
from llava_gateway.api.openai.responses.items import InputItems
from llava_gateway.api.openai.sampling import (
    ASPECT_RATIO,
    VLLM_IGNORED,
    VLLM_REFUSED,
    JsonObjectFormat,
    SamplingFields,
    TextFormat,
    format_tag,
    schema_format,
)
from llava_gateway.api.schema import LIST, ONE, ONE_OR_LIST, TAG_PREFIX, RefusedField, StrictModel
from llava_gateway.api.tools import MAX_TOOLS, ToolUse, allowed_tools, any_tool, named_tool, to_tools
from llava_gateway.errors import InvalidRequest
from llava_gateway.settings import AspectRatio
from llava_gateway.types import ChatRequest, Message, StructuredOutput

LOGPROBS = "message.output_text.logprobs"
ECHOED = "it has no effect on the answer; the response repeats it"
ONLY_CHAT = "only chat completions return this"
_Label = Annotated[str, Field(max_length=512)]


class _ToolType(StrictModel):
    """Pydantic checks the fields of the last base class first: an error of another tool names its type, not its missing name."""

    type: FunctionType = "function"


class ResponseTool(FunctionDefinition, _ToolType):
    """A function in the flat form of the Responses API."""


class FunctionChoice(StrictModel):
    type: Literal["function"]
    name: str


class AllowedFunctionsChoice(StrictModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)


_ToolChoice = Annotated[
    AnyToolChoice
    | Annotated[FunctionChoice, Tag(TAG_PREFIX + "function")]
    | Annotated[AllowedFunctionsChoice, Tag(TAG_PREFIX + "allowed_tools")],
    CHOICE_BY_TYPE,
]


class JsonSchemaTextFormat(StrictModel):
    """A JSON Schema in the flat form of the Responses API."""

    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=64, description="required, but has no effect")
    description: str | None = Field(None, description="ignored: the model does not see it")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="a JSON Schema; default: any object")
    strict: bool | None = Field(None, description="ignored: the answer always follows the schema")


class TextConfig(StrictModel):
    format: (
        Annotated[
            Annotated[TextFormat, Tag(TAG_PREFIX + "text")]
            | Annotated[JsonObjectFormat, Tag(TAG_PREFIX + "json_object")]
            | Annotated[JsonSchemaTextFormat, Tag(TAG_PREFIX + "json_schema")],
            Discriminator(
                format_tag, custom_error_type="format", custom_error_message="must be an object of type text, json_object or json_schema"
            ),
        ]
        | None
    ) = Field(None, description="text, json_object or json_schema; the answer always follows the schema")
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="ignored: the model has only one level")


def _check_metadata(metadata: Any) -> Any:
    if isinstance(metadata, dict):
        texts = all(isinstance(value, str) and len(key) <= 64 and len(value) <= 512 for key, value in metadata.items())
        if len(metadata) > 16 or not texts:
            raise ValueError("must have at most 16 texts of at most 512 characters, with keys of at most 64 characters")
    return metadata


class CreateResponse(SamplingFields):
    """`POST /v1/responses`."""

    input: Annotated[Annotated[str, ONE] | Annotated[InputItems, LIST], ONE_OR_LIST] = Field(
        description="a text of the user, or a list of items (see Input)"
    )
    instructions: str | None = Field(None, description="a system message before the conversation; a later response does not inherit it")
    previous_response_id: str | None = Field(None, description="the id of a stored response, whose conversation goes on")
    store: bool | None = Field(None, description="false: the response is not kept; default true (see State)")
    max_output_tokens: int | None = Field(
        None, ge=1, description="the maximum number of tokens in an answer; default: `--default-max-tokens`"
    )
    text: TextConfig | None = Field(None, description="the form of the answer's text")
    tools: list[ResponseTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True, description=TOOLS)
    tool_choice: _ToolChoice | None = Field(
        None,
        description=TOOL_CHOICE,
    )
    parallel_tool_calls: bool | None = Field(None, description=PARALLEL_TOOL_CALLS)
    include: list[str] | None = Field(
        None, max_length=100, description=f"`{LOGPROBS}` returns the log probabilities of the answer's tokens; other values have no effect"
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="return the 0 to 20 likeliest tokens at each position of the answer; above 0 also without include"
    )
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    metadata: Annotated[dict[str, str], BeforeValidator(_check_metadata)] | None = Field(
        None, description="up to 16 texts, which the response repeats"
    )
    user: _Label | None = Field(None, description=ECHOED)
    safety_identifier: _Label | None = Field(None, description=ECHOED)
    prompt_cache_key: _Label | None = Field(None, description=ECHOED)

    format_field: ClassVar = "text.format"
    refused: ClassVar = {
        "background": RefusedField("a response is answered at once or as a stream"),
        "conversation": RefusedField("send previous_response_id"),
        "prompt": RefusedField("the server has no prompt templates; send instructions and input"),
        "max_tool_calls": RefusedField("it limits built-in tools, and the server has none", allowed_values=(None,)),
        "truncation": RefusedField("a conversation that does not fit is refused and never shortened", allowed_values=(None, "disabled")),
        "context_management": RefusedField("a conversation that does not fit is refused and never shortened"),
        "moderation": RefusedField("the server does not moderate"),
        "max_tokens": RefusedField("send max_output_tokens", allowed_values=(None,)),
        "max_completion_tokens": RefusedField("send max_output_tokens", allowed_values=(None,)),
        "response_format": RefusedField('send text: {"format": ...}', allowed_values=(None, {"type": "text"})),
        "n": RefusedField("a response has one answer", allowed_values=(None, 1)),
        "logprobs": RefusedField(f'send include: ["{LOGPROBS}"]', allowed_values=(None, False)),
        "prompt_logprobs": RefusedField(ONLY_CHAT, allowed_values=(None,)),
        "return_token_ids": RefusedField(ONLY_CHAT),
        "return_tokens_as_token_ids": RefusedField(ONLY_CHAT),
    } | VLLM_REFUSED
    ignored: ClassVar = {
        "reasoning": "the model has no reasoning step",
        "service_tier": "the server has only one tier",
        "stream_options": "events are never padded",
        "prompt_cache_retention": "the prefix cache keeps as much as fits",
        "prompt_cache_options": "the prefix cache keeps as much as fits",
    } | VLLM_IGNORED

    @property
    def asks_for_logprobs(self) -> bool:
        """Whether the answer has log probabilities."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def tool_use(self) -> ToolUse:
        """Return the tools that the answer may call. Raises InvalidRequest for contradictory fields."""
        if not self.tools:
            if self.tool_choice not in (None, "none", "auto"):
                raise InvalidRequest("tool_choice requires tools.", param="tool_choice")
            return ToolUse()
        tools, parallel = (
            to_tools(tool.definition(f"tools[{index}]") for index, tool in enumerate(self.tools)),
            self.parallel_tool_calls is not False,
        )
        if isinstance(self.tool_choice, FunctionChoice):
            return named_tool(tools, self.tool_choice.name, "tool_choice.name", "tools")
        if isinstance(self.tool_choice, AllowedFunctionsChoice):
            names = [(each.name, f"tool_choice.tools[{index}].name") for index, each in enumerate(self.tool_choice.tools)]
            return allowed_tools(tools, names, self.tool_choice.mode, parallel)
        return any_tool(tools, self.tool_choice, parallel)

    def to_chat(self, messages: tuple[Message, ...]) -> ChatRequest:
        """Return the gateway's request for a conversation. Raises InvalidRequest for contradictory fields."""
        tools = self.tool_use()
        logprobs = (self.top_logprobs or 0) if self.asks_for_logprobs else None
        sampling = self.sampling_params(max_tokens=self.max_output_tokens, logprobs=logprobs)
        chat = ChatRequest(
            model=self.model,
            messages=messages,
            param="input",
            tools=tools.tools,
            tools_param=tools.param,
            tool_choice=tools.choice,
            parallel_tool_calls=tools.parallel,
            image_aspect_ratio=self.image_aspect_ratio,
            cache_salt=self.cache_salt,
            sampling=sampling,
            stream=bool(self.stream),
        )
        if chat.must_call and self.text and self.text.format:  # the answer is a call, and has no text to be formatted
            return dataclasses.replace(chat, sampling=dataclasses.replace(sampling, structured_output=None))
        return chat

    def _answer_format(self) -> StructuredOutput | None:
        answer_format = self.text and self.text.format
        if isinstance(answer_format, JsonObjectFormat):
            return StructuredOutput("json_object", param="text.format")
        if isinstance(answer_format, JsonSchemaTextFormat):
            return schema_format(answer_format.json_schema, "text.format.schema")
        return None
