"""`POST /feedback` stores a vote on an answer. The endpoint exists only if the setting `feedback_dir` names a directory."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field
from starlette.routing import Route

from llava_gateway.api.base import Api
from llava_gateway.api.openai.messages import Messages, to_messages
from llava_gateway.api.operation import STRING, ApiDescription, Operation, object_schema
from llava_gateway.api.schema import RequestBody
from llava_gateway.errors import InsufficientStorage
from llava_gateway.feedback.record import VoteName, check_turns, new_vote
from llava_gateway.feedback.store import Full, Store
from llava_gateway.http.endpoints import JsonEndpoint
from llava_gateway.http.request_body import JsonBody, RequestBodyReader
from llava_gateway.http.response import ErrorRenderer, ResponseWriter
from llava_gateway.observability.context import current_context
from llava_gateway.serving.gateway import Gateway
from llava_gateway.settings import SettingsError
from llava_gateway.types import ImageSource

log = logging.getLogger(__name__)


class FeedbackRequest(RequestBody):
    """`POST /feedback`."""

    model: str = Field(description="the name of the model that answered, as the client sent it; another name gives 404 `model_not_found`")
    vote: VoteName = Field(description="up, down or flag")
    messages: Messages = Field(description="the chat, as in /v1/chat/completions; the last message is the assistant's answer")


DESCRIPTION = ApiDescription(
    "Votes",
    "Votes on answers, for datasets.",
    (
        Operation(
            "POST",
            "/feedback",
            "Store a vote on an answer",
            FeedbackRequest,
            object_schema(id=STRING),
            errors={507: "The server has no room for the vote"},
        ),
    ),
)


def create_api(gateway: Gateway, body_reader: RequestBodyReader, render_error: ErrorRenderer) -> Api:
    """Create the API. Raises SettingsError if the directory in the setting `feedback_dir` cannot be written to."""
    settings = gateway.settings
    try:
        store = Store(Path(settings.feedback_dir), settings.feedback_max_mb << 20)
    except OSError as error:
        raise SettingsError(f"feedback_dir {settings.feedback_dir} cannot be written to: {error.strerror}") from error
    endpoint = JsonEndpoint(FeedbackHandlers(gateway, store).vote, render_error, gateway.admission, body_reader)
    return Api([Route("/feedback", endpoint, methods=["POST"])], render_error, description=DESCRIPTION)


class FeedbackHandlers:
    """The handler of the endpoint, and the thread that writes to the store."""

    def __init__(self, gateway: Gateway, store: Store) -> None:
        self._gateway = gateway
        self._store = store
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="feedback")

    async def vote(self, body: JsonBody, response: ResponseWriter) -> None:
        request = FeedbackRequest.read(body)
        self._gateway.model(request.model)
        messages = to_messages(request.messages)
        check_turns(messages)
        images = [part for message in messages for part in message.content if isinstance(part, ImageSource)]
        files = await self._gateway.image_files(request.model, images)
        key_name = current_context().key_name or None
        vote = new_vote(request.model, request.vote, key_name, messages, [file.name for file in files])
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writer, self._store.add, vote, {file.name: file.data for file in files})
        except Full:
            raise InsufficientStorage("The server's storage for votes is full.", code="feedback_full") from None
        except OSError as error:
            log.error("A vote cannot be stored: %s", error.strerror)
            raise InsufficientStorage("The server could not store the vote; its log says why.", code="feedback_failed") from error
        await response.json(200, {"id": vote.id})
