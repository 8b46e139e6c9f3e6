"""The context of one request, as the operator sees it: who asked for what, and where the time went.

Code that learns something writes it here. When the request has ended, its line in the log, its line in the usage log, its metrics and its
trace are made from the context. The context travels in a context variable, so functions on the way do not pass it on.
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
    id: str = ""
    trace: str | None = None
    """`traceparent` (W3C Trace Context) for whatever this request calls."""
    address: str = ""
    """The client's IP address."""
    key_name: str = ""
    """The name of the API key; empty if the server asks for none."""
    model: str = ""
    code: str | None = None
    """The code of the error that ended the request."""
    usage: Usage = field(default_factory=Usage)
    images: list[str] = field(default_factory=list)
    """Digest and size of each image."""
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, begin and end of each stage, by `time.perf_counter`."""

    @property
    def client(self) -> str:
        """The client for fair sharing: the key's name, or the address if the server asks for no key.

        An IPv6 address counts by its first 64 bits, since one client has them all.
        """
        if self.key_name:
            return self.key_name
        if ":" not in self.address:
            return self.address
        return str(ip_network((self.address.partition("%")[0], 64), strict=False))


_current: ContextVar[RequestContext] = ContextVar("request_context")


def current_context() -> RequestContext:
    """Return the context of the request that this code works for. Outside a request it is a new one that nobody reads."""
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
