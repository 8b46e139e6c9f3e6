"""The gateway's end of the delta connections: it receives the deltas of its requests from all replicas of all its models."""

import asyncio
import hmac
import itertools
import logging
import pickle
import secrets
import ssl
from collections.abc import Callable, Mapping

from llava_gateway.cluster.delta_sender import (
    HELLO_TIMEOUT,
    NAME_BYTES,
    PROOF_BYTES,
    Address,
    DeltaMessage,
    UsedTokens,
    enable_keepalive,
    proof,
)
from llava_gateway.errors import EngineFailed, GatewayError, Unavailable
from llava_gateway.types import Delta, Usage

log = logging.getLogger(__name__)


class ReplicaLost(Unavailable):
    """The replica that had this request has died, or its connection is lost."""

    code = "engine_dead"

    def __init__(self, message: str = "The engine that answered this request has died.") -> None:
        super().__init__(message, retry_after=10)


class PendingAnswer:
    """The answer to one request, as it arrives."""

    def __init__(self, usage: Usage, on_delta: Callable[[Delta], None]) -> None:
        """`usage`: kept up to date with the tokens that the replica reports. `on_delta`: called with each delta."""
        self.started = False
        """Whether a delta has arrived."""
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the answer has ended; raises GatewayError if it has ended with an error."""
        self.replica = ""
        """The name of the replica that has the request. Empty until its first message."""
        self._usage = usage
        self._completion_tokens = 0
        self._on_delta = on_delta

    @property
    def is_whole(self) -> bool:
        """Whether the answer has ended without an error."""
        return self.end.done() and not self.end.cancelled() and self.end.exception() is None

    def receive(self, replica: str, delta: Delta | None, used: UsedTokens, end: GatewayError | bool) -> None:
        """Accept a message of a replica. The parameters after the first are as in `DeltaMessage`."""
        usage = self._usage
        usage.prompt_tokens, usage.image_tokens, usage.video_tokens, usage.cached_tokens, completion_tokens = used
        usage.completion_tokens += completion_tokens - self._completion_tokens  # `on_delta` may add tokens of its own
        self._completion_tokens = completion_tokens
        self.replica = replica
        if delta is not None:
            self.started = True
            try:
                self._on_delta(delta)
            except Exception:  # an error of this request must not end the connection, which others use, too
                log.exception("a delta could not be processed")
                end = EngineFailed("The engine's answer could not be passed on.")
        if end is not False and not self.end.done():
            if isinstance(end, GatewayError):
                self.end.set_exception(end)
            else:
                self.end.set_result(None)

    def fail(self) -> None:
        """End the answer with ReplicaLost, unless it has ended."""
        if not self.end.done():
            self.end.set_exception(ReplicaLost())


class DeltaReceiver:
    """Connects to replicas, and passes their deltas on to the requests that wait for them. Used from one event loop."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        """`context`: for encrypted connections. None: connections are not encrypted."""
        self.name = secrets.token_hex(NAME_BYTES // 2)
        """The name that replicas know this gateway by."""
        self._context = context
        self._numbers = itertools.count(1)
        self._answers: dict[int, PendingAnswer] = {}
        """By the number of the request."""
        self._connections: dict[str, asyncio.Task[None]] = {}
        """By the name of the replica."""

    def connect(self, replicas: Mapping[str, Address]) -> None:
        """Connect to these replicas in the background. Replicas that are connected already are skipped."""
        for replica in replicas.keys() - self._connections.keys():
            self._connections[replica] = asyncio.create_task(self._read(replica, replicas[replica]))

    def register(self, usage: Usage, on_delta: Callable[[Delta], None]) -> tuple[int, PendingAnswer]:
        """Return a number for a new request, and its answer. Deltas with this number are received until `unregister`."""
        number = next(self._numbers)
        self._answers[number] = answer = PendingAnswer(usage, on_delta)
        return number, answer

    def unregister(self, number: int) -> None:
        """Drop all further deltas of a request."""
        end = self._answers.pop(number).end
        if not end.cancel() and not end.cancelled():
            end.exception()  # marks the error as retrieved, in case the reader has left

    async def _read(self, replica: str, address: Address) -> None:
        """Connect to a replica and read its messages until the connection is lost. The answers that it has not finished then fail."""
        try:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=self._context)
            try:
                await self._greet(address, reader, writer)
                while True:
                    size = int.from_bytes(await reader.readexactly(4))
                    messages = pickle.loads(await reader.readexactly(size))  # noqa: S301  # the replica has proved its identity
                    self._dispatch(replica, messages)
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            log.info("the connection to replica %s is lost: %s", replica, error)
        except Exception:  # the message was not understood
            log.exception("the connection to replica %s is given up", replica)
        del self._connections[replica]
        for answer in self._answers.values():
            if answer.replica == replica:
                answer.fail()

    async def _greet(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Prove to the replica that this is a gateway, and have it prove that it is the replica.

        Another program may have the replica's port by now. Raises OSError.
        """
        enable_keepalive(writer)
        async with asyncio.timeout(HELLO_TIMEOUT):
            challenge = (await reader.readexactly(NAME_BYTES)).decode("latin-1")
            texts = challenge, self.name, secrets.token_hex(NAME_BYTES // 2)
            writer.write("".join(texts[1:]).encode() + proof(address.token, "gateway", *texts))
            received = await reader.readexactly(PROOF_BYTES)
        if not hmac.compare_digest(received, proof(address.token, "replica", *texts)):
            raise ConnectionRefusedError("another program listens on the replica's port")

    def _dispatch(self, replica: str, messages: list[DeltaMessage]) -> None:
        for number, delta, used, end in messages:
            if answer := self._answers.get(number):
                answer.receive(replica, delta, used, end)
