"""`POST /tokenize` and `/detokenize`, in vLLM's shapes: what a request costs before it is sent, images included."""

from typing import Any, ClassVar

from pydantic import Field

from llava_gateway.chat import ChatRequest, CompletionRequest
from llava_gateway.doors.openai.chat_request import check_continuation
from llava_gateway.doors.openai.completions_request import Images, to_images
from llava_gateway.doors.openai.sampling import VLLM_REFUSED, TokenIds
from llava_gateway.errors import InvalidRequest
from llava_gateway.gateway import Gateway
from llava_gateway.templates import built_in
from llava_gateway.web.body import JsonBody
from llava_gateway.web.fields import Refused, RequestBody
from llava_gateway.web.messages import Messages, to_messages

_TEMPLATE = {name: VLLM_REFUSED[name] for name in ("chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs")}


class TokenizeRequest(RequestBody):
    """`POST /tokenize`: either `messages` or `prompt`."""

    model: str | None = Field(None, description="the served model's id; none: that one")
    messages: Messages | None = Field(None, description="a chat, as /v1/chat/completions takes it")
    chat_template: str | None = Field(None, description="with `messages`: the name of a built-in template")
    continue_final_message: bool | None = Field(None, description="with `messages`: as /v1/chat/completions takes it")
    add_generation_prompt: bool | None = Field(None, description="with `messages`: as /v1/chat/completions takes it")
    prompt: str | None = Field(None, description="text, as /v1/completions takes it")
    images: Images | None = Field(None, description="with `prompt`: one for each `<image>` in it")
    add_special_tokens: bool | None = Field(None, description="with `prompt`: begin it with the model's `<s>`; default true")
    return_token_strs: bool | None = Field(None, description="name the tokens, too")

    refused: ClassVar = {
        "tools": Refused("this model calls no tools"),
    } | _TEMPLATE


class DetokenizeRequest(RequestBody):
    """`POST /detokenize`."""

    model: str | None = Field(None, description="the served model's id; none: that one")
    tokens: TokenIds = Field(description="token ids")


async def tokenize(gateway: Gateway, body: JsonBody) -> dict[str, Any]:
    """vLLM's `TokenizeResponse`, and how many of the tokens are images'. Raises GatewayError."""
    asked = TokenizeRequest.read(body)
    model = asked.model if asked.model is not None else gateway.model_name
    request: ChatRequest | CompletionRequest
    if (asked.messages is None) == (asked.prompt is None):
        raise InvalidRequest("Send either messages or prompt.", param="prompt" if asked.messages else "messages")
    if asked.messages is not None:
        for name in ("images", "add_special_tokens"):
            if getattr(asked, name) is not None:
                raise InvalidRequest(f"{name} goes with prompt, not with messages.", param=name)
        if asked.chat_template is not None:
            built_in(asked.chat_template, "chat_template")
        messages = to_messages(asked.messages)
        check_continuation(asked.continue_final_message, asked.add_generation_prompt, messages)
        continues = bool(asked.continue_final_message)
        request = ChatRequest(model=model, messages=messages, template=asked.chat_template, continue_last=continues)
    else:
        add_special_tokens = asked.add_special_tokens is not False
        request = CompletionRequest(
            model=model, prompt=asked.prompt or "", images=to_images(asked.images), add_special_tokens=add_special_tokens
        )
    info = gateway.model(model)
    tokens, image_tokens = await gateway.tokenize(request)
    if asked.return_token_strs and len(tokens) > info.context_length:
        why = (
            f"These are {len(tokens)} tokens, and the model's context is {info.context_length}; longer prompts are counted, but not spelt."
        )
        raise InvalidRequest(why, param="return_token_strs")
    return {
        "count": len(tokens),
        "max_model_len": info.context_length,
        "image_tokens": image_tokens,
        "tokens": tokens,
        "token_strs": [info.vocabulary.token(token) for token in tokens] if asked.return_token_strs else None,
    }


def detokenize(gateway: Gateway, body: JsonBody) -> dict[str, Any]:
    """vLLM's `DetokenizeResponse`. Raises GatewayError."""
    asked = DetokenizeRequest.read(body)
    info = gateway.model(asked.model if asked.model is not None else gateway.model_name)
    if len(asked.tokens) > info.context_length:
        raise InvalidRequest(f"There are {len(asked.tokens)} tokens; the model's context is {info.context_length}.", param="tokens")
    info.vocabulary.check(asked.tokens, "tokens")
    return {"prompt": info.vocabulary.decode(asked.tokens)}
