"""The context of one request, for the operator: its client, its model, its usage, and the time of its stages.

Each part of the gateway writes its facts into the context. When the request has ended, its line in the log, its line in the usage log, its
metrics and its trace are made from the context. The context is in a context variable, so functions need not pass it on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import ip_network
from random import getrandbits
from time import perf_counter

from llava_gateway.types import Usage


@dataclass(slots=True)
class RequestContext:
    """The facts about one request.

    The middleware makes a context for each HTTP request. An embedder that calls the gateway itself may make one:

        with request_context(RequestContext(id=new_id(), key_name="nightly-job")) as context:
            async with gateway.open(request) as deltas:
                text = "".join([delta.text async for delta in deltas])
        print(context.usage)
    """

    id: str = ""
    """The request's id, which the response has as `x-request-id`."""
    trace: str | None = None
    """The `traceparent` header (W3C Trace Context) for calls that this request makes."""
    address: str = ""
    """The client's IP address."""
    key_name: str = ""
    """The name of the API key; empty if the server asks for none."""
    model: str = ""
    """The name of the model or LoRA adapter; empty until it is known."""
    code: str | None = None
    """The code of the error that ended the request. None: no error."""
    usage: Usage = field(default_factory=Usage)
    images: list[str] = field(default_factory=list)
    """The digest and size of each image, as one text."""
    videos: list[str] = field(default_factory=list)
    """The digest, size, duration and number of frames of each video, as one text."""
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    """The name, begin and end of each stage, in seconds of `time.perf_counter`."""

    @property
    def client(self) -> str:
        """The identity of the client for fair sharing: the key's name, or the address if the server asks for no key.

        An IPv6 address counts by its first 64 bits, because one client usually has the whole /64 network.
        """
        if self.key_name:
            return self.key_name
        if ":" not in self.address:
            return self.address
        return str(ip_network((self.address.partition("%")[0], 64), strict=False))


_current: ContextVar[RequestContext] = ContextVar("request_context")


def current_context() -> RequestContext:
    """Return the context of the request that this code works for. Outside a request this is a new context, which is not recorded."""
    return _current.get(None) or RequestContext()


@contextmanager
def request_context(context: RequestContext) -> Iterator[RequestContext]:
    """Make `context` the current one within the block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Record the block as a stage of the current request, even if it fails."""
    start = perf_counter()
    try:
        yield
    finally:
        current_context().stages.append((stage, start, perf_counter()))


def new_id() -> str:
    """Return 32 random hexadecimal digits. They are not secret: no system call is made for them."""
    return f"{getrandbits(128):032x}"
