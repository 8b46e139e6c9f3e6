"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from typing import Any, ClassVar

from pydantic import Field

from llava_gateway.api.openai.chat_request import ChatPromptFields
from llava_gateway.api.openai.completion_request import Images, Videos, to_images, to_videos
from llava_gateway.api.openai.messages import Messages
from llava_gateway.api.openai.sampling import VLLM_REFUSED, TokenIds
from llava_gateway.api.schema import RequestBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import JsonBody
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import ChatRequest, CompletionRequest

MODEL = "the id of a served model; default: the first one"


class TokenizeRequest(ChatPromptFields):
    """`POST /tokenize`: either `messages` or `prompt`."""

    model: str | None = Field(None, description=MODEL)
    messages: Messages | None = Field(None, description="a chat, as in /v1/chat/completions")
    prompt: str | None = Field(None, description="a text, as in /v1/completions")
    images: Images | None = Field(None, description="with `prompt`: one for each `<image>` in it")
    videos: Videos | None = Field(None, description="with `prompt`: one for each `<video>` in it")
    add_special_tokens: bool | None = Field(
        None, description="with `prompt`: begin it with the model's `<s>`; default true; with `messages` only false"
    )
    return_token_strs: bool | None = Field(None, description="also return each token as a string")

    refused: ClassVar = {name: VLLM_REFUSED[name] for name in ("mm_processor_kwargs", "media_io_kwargs")}


class DetokenizeRequest(RequestBody):
    """`POST /detokenize`."""

    model: str | None = Field(None, description=MODEL)
    tokens: TokenIds = Field(description="token ids")


async def tokenize(gateway: Gateway, body: JsonBody) -> dict[str, Any]:
    """Return vLLM's `TokenizeResponse`, with the numbers of image and video tokens. Raises GatewayError."""
    request = TokenizeRequest.read(body)
    model = request.model or gateway.model_name
    prompt = _to_prompt(request, model)
    info = gateway.model(model)
    tokens, image_tokens, video_tokens = await gateway.tokenize(prompt)
    if request.return_token_strs and len(tokens) > info.context_length:
        raise InvalidRequest(
            f"The prompt has {len(tokens)} tokens, and the model's context is {info.context_length} tokens; "
            "token strings are returned only for prompts that fit the context.",
            param="return_token_strs",
        )
    return {
        "count": len(tokens),
        "max_model_len": info.context_length,
        "image_tokens": image_tokens,
        "video_tokens": video_tokens,
        "tokens": tokens,
        "token_strs": [info.tokenizer.token(token) for token in tokens] if request.return_token_strs else None,
    }


def _to_prompt(request: TokenizeRequest, model: str) -> ChatRequest | CompletionRequest:
    """Return the chat or the prompt to tokenize. Raises InvalidRequest."""
    if (request.messages is None) == (request.prompt is None):
        raise InvalidRequest("Send either messages or prompt.", param="prompt" if request.messages else "messages")
    if request.messages is None:
        add_special_tokens = request.add_special_tokens is not False
        images, videos = to_images(request.images), to_videos(request.videos)
        for name in ("tools", "functions"):
            if getattr(request, name):
                raise InvalidRequest(f"{name} is only possible with messages, not with prompt.", param=name)
        return CompletionRequest(
            model=model, prompt=request.prompt or "", images=images, videos=videos, add_special_tokens=add_special_tokens
        )
    for name in ("images", "videos", "add_special_tokens"):
        if getattr(request, name):
            raise InvalidRequest(f"{name} is only possible with prompt, not with messages.", param=name)
    return request.to_chat_prompt(model, request.messages)


def detokenize(gateway: Gateway, body: JsonBody) -> dict[str, Any]:
    """Return vLLM's `DetokenizeResponse`. Raises GatewayError."""
    request = DetokenizeRequest.read(body)
    info = gateway.model(request.model or gateway.model_name)
    if len(request.tokens) > info.context_length:
        raise InvalidRequest(f"There are {len(request.tokens)} tokens; the model's context is {info.context_length}.", param="tokens")
    info.tokenizer.check(request.tokens, "tokens")
    return {"prompt": info.tokenizer.decode(request.tokens)}
