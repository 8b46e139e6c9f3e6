"""Chat completions on SambaStudio's paths, which name a project and an endpoint: `/openai/v1/PROJECT/ENDPOINT/chat/completions`.

SambaNova's documentation has the paths without `/openai`, and its LangChain package has them with it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from llava_gateway.api.openai.chat_request import ChatCompletionRequest
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.serving.gateway import Gateway

PATHS = tuple(f"{prefix}/{{project}}/{{endpoint}}/chat/completions" for prefix in ("/openai/v1", "/v1"))

AnswerChat = Callable[[ChatCompletionRequest, ResponseWriter], Awaitable[None]]


@dataclass(frozen=True)
class SambaStudioChat:
    """An ASGI app that answers chat completions with the model that the path names.

    The path may name no served model. The field `model` is used then, unless it has another name, such as that of SambaStudio's expert.
    """

    gateway: Gateway
    body_reader: RequestBodyReader
    answer: AnswerChat
    render_error: ErrorRenderer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = partial(self._handle, **scope["path_params"])
        await JsonEndpoint(handle, self.render_error, self.gateway.admission, self.body_reader)(scope, receive, send)

    async def _handle(self, body: JsonBody, response: ResponseWriter, *, project: str, endpoint: str) -> None:
        request = ChatCompletionRequest.read(body)
        changes: dict[str, Any] = {"model": self.gateway.models.first_served(endpoint, f"{project}/{endpoint}", project, request.model)}
        if not request.stream:  # ChatSambaStudio sends them with each request
            changes["stream_options"] = None
        await self.answer(request.model_copy(update=changes), response)
