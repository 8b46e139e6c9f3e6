"""One HTTP request as the operator sees it: who asked for what, and where its time went. Whoever learns something writes it here; the
line in the log, the usage log and the traces are made of it when the request has ended. It travels in a context variable, since what it
passes through has other things to talk about."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import ip_network
from random import getrandbits
from time import perf_counter

from llava_gateway.auth.rate_limits import Caller
from llava_gateway.types import Usage


@dataclass(slots=True)
class Call:
    id: str = ""
    trace: str | None = None
    """`traceparent` (W3C Trace Context) for whatever this request calls."""
    address: str = ""
    """Where it came from."""
    caller: Caller | None = None
    """Whose key came with it; None where none is asked for."""
    model: str = ""
    code: str | None = None
    """Of the error that it ended with."""
    usage: Usage = field(default_factory=Usage)
    images: list[str] = field(default_factory=list)
    """Digest and size of each."""
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, begin and end of each stage, by `time.perf_counter`."""

    @property
    def client(self) -> str:
        """The client that work is shared with fairly: the key's name, or the address if no key is asked for. An IPv6 address counts by its
        first 64 bits, since one client has them all."""
        if self.caller:
            return self.caller.key.name
        if ":" not in self.address:
            return self.address
        return str(ip_network((self.address.partition("%")[0], 64), strict=False))


_current: ContextVar[Call] = ContextVar("call")


def current() -> Call:
    """The call that this code works for; one that nobody looks at where there is none."""
    return _current.get(None) or Call()


@contextmanager
def new_call(call: Call) -> Iterator[Call]:
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """A stage of the current call, failed or not."""
    start = perf_counter()
    try:
        yield
    finally:
        current().stages.append((stage, start, perf_counter()))


def new_id() -> str:
    """32 hexadecimal digits, without asking the system for randomness each time."""
    return f"{getrandbits(128):032x}"
