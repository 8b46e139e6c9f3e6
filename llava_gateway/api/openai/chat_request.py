"""The request body of `/v1/chat/completions`, and its translation to the gateway's request.

It is declared after OpenAI's `CreateChatCompletionRequest`.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

from pydantic import Field

from llava_gateway.api.openai.chat_tools import ToolFields
from llava_gateway.api.openai.messages import ChatMessage, Messages, to_messages
from llava_gateway.api.openai.sampling import ASPECT_RATIO, NO_EFFECT, VLLM_IGNORED, VLLM_REFUSED, CompletionFields
from llava_gateway.api.schema import RefusedField
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.templates import built_in
from llava_gateway.settings import AspectRatio
from llava_gateway.types import ChatRequest

NOTHING_STORED = "nothing is stored"
TEMPLATE_KWARGS = "vLLM's: variables of the chat template, each true or false; variables that the template does not read have no effect"


class ChatPromptFields(ToolFields):
    """The fields that change a chat's prompt, beside the messages: of chat completions and of `/tokenize`."""

    chat_template: str | None = Field(None, description="the name of a built-in template (see docs/dialects.md), not Jinja source")
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=100)] | None = Field(None, description=TEMPLATE_KWARGS)
    continue_final_message: bool | None = Field(None, description="vLLM's: continue the last message, which must be the assistant's")
    add_generation_prompt: bool | None = Field(None, description="vLLM's: must be the opposite of continue_final_message")

    def to_chat_prompt(self, model: str, messages: list[ChatMessage]) -> ChatRequest:
        """Return a chat with all that its prompt depends on. Raises InvalidRequest for contradictory fields."""
        if self.chat_template is not None:
            built_in(self.chat_template, "chat_template")
        tools = self.tool_use()
        chat = ChatRequest(
            model=model,
            messages=to_messages(messages),
            template=self.chat_template,
            template_kwargs=self.chat_template_kwargs or {},
            continue_last=bool(self.continue_final_message),
            tools=tools.tools,
            tools_param=tools.param,
            tool_choice=tools.choice,
            parallel_tool_calls=tools.parallel,
        )
        self._check_continuation(chat)
        return chat

    def _check_continuation(self, chat: ChatRequest) -> None:
        """Raise InvalidRequest unless the request asks either for a continued or for a new message of the assistant."""
        last = chat.messages[-1]
        if chat.continue_last and (last.role != "assistant" or last.tool_calls):
            raise InvalidRequest(
                "continue_final_message requires that the last message is the assistant's and has no tool calls.",
                param="continue_final_message",
            )
        if chat.continue_last and chat.must_call:
            raise InvalidRequest(
                "continue_final_message continues a text, and tool_choice requires a call; send only one of them.",
                param="continue_final_message",
            )
        if self.add_generation_prompt is not None and self.add_generation_prompt == chat.continue_last:
            raise InvalidRequest(
                "add_generation_prompt must be the opposite of continue_final_message; leave it out.", param="add_generation_prompt"
            )


class ChatCompletionRequest(ChatPromptFields, CompletionFields):
    """`POST /v1/chat/completions`."""

    messages: Messages = Field(
        description="the roles are system, developer (the same as system), user, assistant, and tool or function for the result of a call; "
        "all may have images and videos"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, description="the maximum number of tokens in an answer; default: `--default-max-tokens`"
    )
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens, which is used if both are sent")
    image_aspect_ratio: AspectRatio | None = Field(None, description=ASPECT_RATIO)
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
    chat = request.to_chat_prompt(request.model, request.messages)
    sampling = request.sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    if chat.must_call and request.response_format is not None:  # the answer is a call, and has no text to be formatted
        sampling = dataclasses.replace(sampling, structured_output=None)
    return dataclasses.replace(
        chat,
        image_aspect_ratio=request.image_aspect_ratio,
        cache_salt=request.cache_salt,
        sampling=sampling,
        stream=bool(request.stream),
    )
