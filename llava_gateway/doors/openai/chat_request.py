"""OpenAI's chat completion request: after its `CreateChatCompletionRequest`, and turned into the core's `ChatRequest`."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from llava_gateway.chat import ChatRequest, Message
from llava_gateway.doors.openai.sampling import ASPECT_RATIO, VLLM_REFUSED, SamplingFields
from llava_gateway.errors import InvalidRequest
from llava_gateway.settings import AspectRatio
from llava_gateway.templates import built_in
from llava_gateway.web.fields import Refused
from llava_gateway.web.messages import Messages, to_messages


class ChatCompletionRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str = Field(description="the served model's id, as /v1/models names it; another one is 404 `model_not_found`")
    messages: Messages = Field(description="roles system, developer (the same), user and assistant; images in user messages")
    max_completion_tokens: int | None = Field(None, ge=1, description="most tokens of an answer; default: `--default-max-tokens`")
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens, which wins")
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
    chat_template: str | None = Field(None, description="the name of a built-in template (docs/dialects.md), not Jinja")
    continue_final_message: bool | None = Field(None, description="vLLM's: go on with the last message, the assistant's")
    add_generation_prompt: bool | None = Field(None, description="vLLM's: false only with continue_final_message, true only without")
    logprobs: bool | None = Field(None, description="log probabilities of the answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="0 to 20 of the likeliest tokens in each place; needs logprobs")

    refused: ClassVar = {
        "tools": Refused("this model calls no tools"),
        "tool_choice": Refused("this model calls no tools", unless=(None, "none")),
        "functions": Refused("this model calls no functions"),
        "function_call": Refused("this model calls no functions", unless=(None, "none")),
        "audio": Refused("this model does not speak"),
        "modalities": Refused("this model writes text", unless=(None, [], ["text"])),
        "web_search_options": Refused("this server does not search the web", unless=(None,)),
        "add_special_tokens": Refused("the prompt is the template's"),
    } | VLLM_REFUSED
    ignored: ClassVar = {
        "parallel_tool_calls": "no tool is called",
        "prediction": "it changes the speed of an answer, not the answer",
        "reasoning_effort": "the model does not reason first",
        "verbosity": "the model has one",
        "service_tier": "there is one",
        "store": "nothing is stored",
        "metadata": "nothing is stored",
        "user": "nothing depends on it",
        "safety_identifier": "nothing depends on it",
        "prompt_cache_key": "the prefix cache finds prompts by their content",
        "prompt_cache_retention": "the prefix cache keeps what fits",
    }


def to_chat(request: ChatCompletionRequest) -> ChatRequest:
    """The core's request. InvalidRequest for a user message without content."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.chat_template is not None:
        built_in(request.chat_template, "chat_template")
    messages = to_messages(request.messages)
    check_continuation(request.continue_final_message, request.add_generation_prompt, messages)
    return ChatRequest(
        model=request.model,
        messages=messages,
        template=request.chat_template,
        continue_last=bool(request.continue_final_message),
        image_aspect_ratio=request.image_aspect_ratio,
        sampling=request.sampling(
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        ),
        stream=bool(request.stream),
    )


def check_continuation(continues: bool | None, begins: bool | None, messages: Sequence[Message]) -> None:
    """Either more of the last message is asked for or a new one. Raises InvalidRequest."""
    if continues and messages[-1].role != "assistant":
        raise InvalidRequest("continue_final_message needs a last message of the assistant.", param="continue_final_message")
    if begins is not None and begins == bool(continues):
        raise InvalidRequest("add_generation_prompt is true unless continue_final_message is; leave it out.", param="add_generation_prompt")
