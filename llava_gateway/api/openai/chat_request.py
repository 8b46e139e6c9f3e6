"""The request body of `/v1/chat/completions`, and its translation to the gateway's request.

It is declared after OpenAI's `CreateChatCompletionRequest`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from llava_gateway.api.openai.chat_tools import ToolFields, ToolUse
from llava_gateway.api.openai.messages import Messages, to_messages
from llava_gateway.api.openai.sampling import ASPECT_RATIO, NO_EFFECT, VLLM_IGNORED, VLLM_REFUSED, SamplingFields
from llava_gateway.api.schema import RefusedField
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import built_in
from llava_gateway.settings import AspectRatio
from llava_gateway.types import ChatRequest, Message

NOTHING_STORED = "nothing is stored"
TEMPLATE_KWARGS = "vLLM's: variables of the chat template, each true or false; variables that the template does not read have no effect"
TemplateKwargs = Annotated[dict[str, Any], Field(max_length=100)]


class ChatCompletionRequest(ToolFields, SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Messages = Field(
        description="the roles are system, developer (the same as system), user, assistant, and tool or function for the result of a call; "
        "all may have images"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, description="the maximum number of tokens in an answer; default: `--default-max-tokens`"
    )
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens, which is used if both are sent")
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    chat_template: str | None = Field(None, description="the name of a built-in template (see docs/dialects.md), not Jinja source")
    chat_template_kwargs: TemplateKwargs | None = Field(None, description=TEMPLATE_KWARGS)
    continue_final_message: bool | None = Field(None, description="vLLM's: continue the last message, which must be the assistant's")
    add_generation_prompt: bool | None = Field(None, description="vLLM's: must be the opposite of continue_final_message")
    logprobs: bool | None = Field(None, description="return the log probabilities of the answer's tokens")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="return the 0 to 20 likeliest tokens at each position of the answer; only with logprobs"
    )

    refused: ClassVar = {
        "audio": RefusedField("the model cannot produce audio"),
        "modalities": RefusedField("the model produces only text", allowed_values=(None, [], ["text"])),
        "web_search_options": RefusedField("the server does not search the web", allowed_values=(None,)),
        "echo": RefusedField("the answer does not repeat the last message"),
        "add_special_tokens": RefusedField("the chat template writes the whole prompt"),
    } | VLLM_REFUSED
    ignored: ClassVar = {
        "prediction": "it changes the speed of an answer, not the answer",
        "reasoning_effort": "the model has no reasoning step",
        "verbosity": "the model has only one level",
        "service_tier": "the server has only one tier",
        "store": NOTHING_STORED,
        "metadata": NOTHING_STORED,
        "user": NO_EFFECT,
        "safety_identifier": NO_EFFECT,
        "prompt_cache_key": "the prefix cache finds prompts by their content",
        "prompt_cache_retention": "the prefix cache keeps as much as fits",
    } | VLLM_IGNORED


def to_chat(request: ChatCompletionRequest) -> ChatRequest:
    """Return the gateway's request. Raises InvalidRequest for contradictory fields."""
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs requires logprobs: true.", param="top_logprobs")
    if request.chat_template is not None:
        built_in(request.chat_template, "chat_template")
    messages = to_messages(request.messages)
    tools = request.tool_use()
    check_continuation(request.continue_final_message, request.add_generation_prompt, messages, tools)
    sampling = request.sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    if tools.choice != "auto" and request.response_format is not None:  # the answer is a call, and has no text to be formatted
        sampling = dataclasses.replace(sampling, structured_output=None)
    return ChatRequest(
        model=request.model,
        messages=messages,
        template=request.chat_template,
        template_kwargs=request.chat_template_kwargs or {},
        continue_last=bool(request.continue_final_message),
        tools=tools.tools,
        tools_param=tools.param,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
        image_aspect_ratio=request.image_aspect_ratio,
        cache_salt=request.cache_salt,
        sampling=sampling,
        stream=bool(request.stream),
    )


def check_continuation(
    continue_final_message: bool | None, add_generation_prompt: bool | None, messages: Sequence[Message], tools: ToolUse
) -> None:
    """Raise InvalidRequest unless the request asks either for a continued or for a new message of the assistant."""
    if continue_final_message and (messages[-1].role != "assistant" or messages[-1].tool_calls):
        raise InvalidRequest(
            "continue_final_message requires that the last message is the assistant's and has no tool calls.",
            param="continue_final_message",
        )
    if continue_final_message and tools.choice != "auto":
        raise InvalidRequest(
            "continue_final_message continues a text, and tool_choice requires a call; send only one of them.",
            param="continue_final_message",
        )
    if add_generation_prompt is not None and add_generation_prompt == bool(continue_final_message):
        raise InvalidRequest(
            "add_generation_prompt must be the opposite of continue_final_message; leave it out.", param="add_generation_prompt"
        )
