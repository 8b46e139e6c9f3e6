"""A stream's deltas on their way to the client: deltas of text alone get the same bytes, and a slow client loses nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llava_gateway.api.openai.chat_response import ChatChunkRenderer
from llava_gateway.api.openai.completion_response import TextChunkRenderer
from llava_gateway.api.openai.sampling import StreamOptions
from llava_gateway.api.openai.streaming import ChunkFramer, RenderOptions
from llava_gateway.http.response import ResponseWriter
from llava_gateway.serving.delta_stream import DeltaStream
from llava_gateway.serving.prepare import PreparedRequest
from llava_gateway.types import CompletionRequest, Delta, Usage

TEXTS = ("One", ' "two"', "", "\n", " drei \U0001f600", "NUL \0")


class Client:
    """The server's shortcut to a client, which may be too slow for more data."""

    def __init__(self) -> None:
        self.is_ready = True
        self.body = b""
        self.texts = 0

    def write(self, data: bytes) -> None:
        self.body += data

    def between(self, start: bytes, end: bytes) -> Callable[[bytes], bool]:
        def write(data: bytes) -> bool:
            if self.is_ready:
                self.body += start + data + end
                self.texts += 1
            return self.is_ready

        return write


def delta_stream() -> DeltaStream:
    request, unused = CompletionRequest(model="m", prompt="p", stream=True), None
    return DeltaStream(PreparedRequest(request, unused, unused, "p", [], 0, request.sampling), Usage(3, 1))  # type: ignore[arg-type]


def streamed(renderer: Any, deltas: DeltaStream, *, frame: bool, slow_at: int | None = None) -> tuple[bytes, int]:
    """Return the body of a stream of TEXTS, and the number of texts that were not rendered. `slow_at`: there the client is slow."""
    client = Client()

    async def send(message: Any) -> None:
        client.body += message.get("body", b"")

    async def generate() -> None:
        for place, text in enumerate(TEXTS):
            await asyncio.sleep(0)
            client.is_ready = place != slow_at
            if place:
                deltas.push_text(text, 1)
            else:
                deltas.push(Delta(0, text, 1))
        await asyncio.sleep(0)
        deltas.push(Delta(0, "", 0, "stop"))

    async def run() -> None:
        response = ResponseWriter(send, writer=client)
        asyncio.create_task(generate()).add_done_callback(deltas.end)
        await response.deltas(deltas, renderer.render_delta, renderer.text_frame if frame else None)

    asyncio.run(run())
    return client.body, client.texts


def chat(deltas: DeltaStream, options: StreamOptions | None) -> Any:
    renderer = ChatChunkRenderer("m", deltas, options, RenderOptions(), choices=1)
    renderer._fields = {"id": "x"}
    renderer._framer = ChunkFramer(renderer._fields, [deltas.usage], options)
    return renderer


def completion(deltas: DeltaStream, options: StreamOptions | None) -> Any:
    return TextChunkRenderer(ChunkFramer({"id": "x"}, [deltas.usage], options), RenderOptions(), first_index=2)


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("options", [None, StreamOptions(include_usage=True)])
def test_text_that_is_not_rendered_has_the_same_bytes(make: Any, options: StreamOptions | None) -> None:
    (whole, none), (quick, texts) = (
        streamed(make(deltas, options), deltas, frame=frame) for frame in (False, True) if (deltas := delta_stream())
    )
    assert (none, texts) == (0, len(TEXTS) - 2)  # the first comes as a delta, and an empty text has no event
    assert quick == whole


@pytest.mark.parametrize("slow_at", range(1, len(TEXTS)))
def test_slow_client_gets_every_text_in_order(slow_at: int) -> None:
    deltas = delta_stream()
    body, _ = streamed(completion(deltas, None), deltas, frame=True, slow_at=slow_at)
    texts = [event.partition(b'"text":')[2].partition(b',"logprobs"')[0] for event in body.split(b"\n\n")]
    assert b"".join(text[1:-1] for text in texts) == b"".join(text.encode() for text in TEXTS).replace(b'"', b'\\"').replace(
        b"\n", b"\\n"
    ).replace(b"\0", b"\\u0000")


def test_usage_in_every_chunk_is_rendered_for_every_text() -> None:
    deltas = delta_stream()
    options = StreamOptions(include_usage=True, continuous_usage_stats=True)
    body, texts = streamed(chat(deltas, options), deltas, frame=True)
    assert texts == 0
    assert body.count(b'"usage":{') == len(TEXTS) - 1 + 2  # each text but the empty one, the role, and the end
