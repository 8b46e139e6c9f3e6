"""The request bodies of `/v1/messages` and `/v1/messages/count_tokens`, and their translation to the gateway's request.

They are declared after `MessageCreateParams` and `MessageCountTokensParams` of Anthropic's SDK.
"""

import dataclasses
from itertools import takewhile
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from llava_gateway.api.anthropic.messages import Messages, Texts, to_messages
from llava_gateway.api.anthropic.tools import ToolFields
from llava_gateway.api.schema import RefusedField, StrictModel, to_schema_text
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import MODEL_DEFAULTS, ChatRequest, Message, SamplingParams, StructuredOutput

MAX_STOP_SEQUENCES, MAX_EDITS = 64, 64
NO_EFFECT = "it has no effect on the answer"
_ModelName = Annotated[
    str,
    BeforeValidator(lambda name: "" if name is None else name),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]
_StopSequence = Annotated[str, Field(min_length=1, max_length=10_000)]


class JsonFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")

    def structured_output(self, path: str) -> StructuredOutput:
        """Return the structure that the answer must have. Raises InvalidRequest for a schema that is too long or nested too deeply."""
        param = f"{path}.schema"
        return StructuredOutput("json", to_schema_text(self.json_schema, param), param)


class OutputConfig(StrictModel):
    """Its `effort` and its `task_budget` are ignored: the model has no reasoning step."""

    format: JsonFormat | None = None


def _check_edit(kind: str) -> str:
    if not kind.startswith("clear_thinking_"):
        raise ValueError(f"must be clear_thinking_..., because the server clears nothing else; {kind[:50]} is not supported")
    return kind


class ContextEdit(StrictModel):
    type: Annotated[str, AfterValidator(_check_edit)]


class ContextManagement(StrictModel):
    edits: list[ContextEdit] | None = Field(None, max_length=MAX_EDITS, fail_fast=True)


class CountTokensRequest(ToolFields):
    """`POST /v1/messages/count_tokens`: the fields that the prompt depends on."""

    model: _ModelName = Field("", description="the id of a served model, as in /v1/models; default: the only model, if only one is served")
    messages: Messages = Field(
        description="the roles are user, assistant and system; an answer continues a last message of the assistant (see Messages)"
    )
    system: Texts | None = Field(None, description="the system prompt: a text, or a list of text blocks")
    context_management: ContextManagement | None = Field(
        None, description="only edits of type `clear_thinking_...`, which have no effect, because the model never sees thinking blocks"
    )

    refused: ClassVar = {
        "container": RefusedField("the server runs no code"),
        "mcp_servers": RefusedField("the server calls no other servers"),
        "compaction": RefusedField("a prompt that does not fit is refused and never shortened"),
        "thread": RefusedField("the server keeps no conversations"),
    }
    ignored: ClassVar = {
        "thinking": "the model has no reasoning step",
        "cache_control": "the prefix cache finds prompts by their content",
        "service_tier": "the server has only one tier",
        "speed": "the server has only one speed",
        "inference_geo": "the server runs in one place",
        "metadata": "nothing is stored",
        "user_profile_id": NO_EFFECT,
        "diagnostics": NO_EFFECT,
        "fallbacks": "only the model that the request names answers",
    }

    def to_prompt(self) -> ChatRequest:
        """Return a chat with all that its prompt depends on. Raises InvalidRequest for contradictory fields."""
        tools, messages = self.tool_use(), to_messages(self.system, self.messages)
        chat = ChatRequest(
            model=self.model,
            messages=messages,
            continue_last=messages[-1].role == "assistant",
            tools=tools.tools,
            tools_param=tools.param,
            tool_choice=tools.choice,
            parallel_tool_calls=tools.parallel,
        )
        if chat.continue_last:
            _check_prefill(chat)
        return chat


class CreateMessageRequest(CountTokensRequest):
    """`POST /v1/messages`."""

    max_tokens: int | None = Field(
        None,
        ge=0,
        description="the maximum number of tokens in the answer; default: `--default-max-tokens`, although Anthropic requires it",
    )
    stop_sequences: list[_StopSequence] | None = Field(
        None,
        max_length=MAX_STOP_SEQUENCES,
        fail_fast=True,
        description=f"up to {MAX_STOP_SEQUENCES}; the answer ends before the first of them",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; 0 always takes the likeliest token; default 1")
    top_p: float | None = Field(
        None, ge=0, le=1, description="0 to 1: sample only from the likeliest tokens whose probabilities add up to this share; default 1"
    )
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="sample only from the k likeliest tokens; 0 and -1 are off")
    output_config: OutputConfig | None = Field(
        None, description="`format` of type json_schema: the answer always follows the schema; `effort` is ignored"
    )
    output_format: JsonFormat | None = Field(None, description="the older form of `output_config.format`")
    stream: bool | None = Field(None, description="send the answer as server-sent events")

    def to_chat(self) -> ChatRequest:
        """Return the gateway's request. Raises InvalidRequest for contradictory fields."""
        chat = self.to_prompt()
        structured_output = self._structured_output()
        if chat.must_call:  # the answer is a call, and has no text to be formatted
            structured_output = None
        greedy = self.top_p == 0
        sampling = SamplingParams(
            max_tokens=self.max_tokens,
            lower_max_tokens_to_fit=True,
            temperature=0.0 if greedy else 1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            stop=tuple(self.stop_sequences or ()),
            structured_output=structured_output,
            unset=frozenset(
                name for name in MODEL_DEFAULTS if getattr(self, name, None) is None and not (greedy and name == "temperature")
            ),
        )
        return dataclasses.replace(chat, sampling=sampling, stream=bool(self.stream))

    def _structured_output(self) -> StructuredOutput | None:
        wanted = self.output_config.format if self.output_config else None
        if wanted and self.output_format:
            raise InvalidRequest("output_format is the older form of output_config.format; send only one of them.", param="output_format")
        if self.output_format:
            return self.output_format.structured_output("output_format")
        return wanted.structured_output("output_config.format") if wanted else None


def _check_prefill(chat: ChatRequest) -> None:
    """Raise InvalidRequest unless an answer can continue the last message, which is the assistant's."""
    last: list[Message] = list(takewhile(lambda message: message.role == "assistant", reversed(chat.messages)))
    if any(message.tool_calls for message in last):
        raise InvalidRequest("messages: a message of the user with tool_result blocks must follow tool_use blocks.", param="messages")
    if chat.must_call:
        raise InvalidRequest(
            "tool_choice requires a call, and a last message of the assistant asks for more of its text; send only one of them.",
            param="tool_choice",
        )
