"""Where the deltas of a gateway's requests come in, from all replicas of all its models."""

import asyncio
import hmac
import itertools
import logging
import pickle
import secrets
import ssl
from collections.abc import Callable, Mapping

from llava_gateway.cluster.delta_sender import HELLO_TIMEOUT, NAME_BYTES, PROOF_BYTES, Address, Entry, notice_silence, proof
from llava_gateway.errors import EngineFailed, GatewayError, Unavailable
from llava_gateway.types import Delta, Usage

log = logging.getLogger(__name__)


class ReplicaLost(Unavailable):
    """The replica that had this request is no more, or cannot be heard."""

    code = "engine_dead"

    def __init__(self, message: str = "The engine that answered this request has died.") -> None:
        super().__init__(message, retry_after=10)


class Expected:
    """A request's answer as it comes in."""

    def __init__(self, usage: Usage, on_delta: Callable[[Delta], None]) -> None:
        self.begun = False
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises GatewayError if the answer ends with one."""
        self.replica = ""
        """That answers, once it has said something."""
        self._usage = usage
        self._completion_tokens = 0
        self._on_delta = on_delta

    @property
    def is_whole(self) -> bool:
        return self.end.done() and not self.end.cancelled() and self.end.exception() is None

    def enter(self, replica: str, delta: Delta | None, used: tuple[int, int, int, int], end: GatewayError | bool) -> None:
        usage = self._usage
        usage.prompt_tokens, usage.image_tokens, usage.cached_tokens, completion_tokens = used
        usage.completion_tokens += completion_tokens - self._completion_tokens  # who takes the deltas adds to them
        self._completion_tokens = completion_tokens
        self.replica = replica
        if delta is not None:
            self.begun = True
            try:
                self._on_delta(delta)
            except Exception:  # is this request's own misfortune
                log.exception("a delta could not be taken")
                end = EngineFailed("The engine's answer could not be passed on.")
        if end is not False and not self.end.done():
            if isinstance(end, GatewayError):
                self.end.set_exception(end)
            else:
                self.end.set_result(None)

    def lose(self) -> None:
        if not self.end.done():
            self.end.set_exception(ReplicaLost())


class DeltaReceiver:
    """Used from one event loop."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        """`context`: replicas encrypt, and this is how."""
        self.name = secrets.token_hex(NAME_BYTES // 2)
        """By which replicas know whom to send to."""
        self._context = context
        self._numbers = itertools.count(1)
        self._expected: dict[int, Expected] = {}
        self._listening: dict[str, asyncio.Task[None]] = {}

    def listen(self, replicas: Mapping[str, Address]) -> None:
        """To all of these from now on, unless that is so already."""
        for replica in replicas.keys() - self._listening.keys():
            self._listening[replica] = asyncio.create_task(self._listen(replica, replicas[replica]))

    def expect(self, usage: Usage, on_delta: Callable[[Delta], None]) -> tuple[int, Expected]:
        """The number that the request goes by, and its answer, until it is forgotten."""
        number = next(self._numbers)
        self._expected[number] = expected = Expected(usage, on_delta)
        return number, expected

    def forget(self, number: int) -> None:
        end = self._expected.pop(number).end
        if not end.cancel() and not end.cancelled():
            end.exception()  # has been seen, should the reader have left

    async def _listen(self, replica: str, address: Address) -> None:
        try:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=self._context)
            try:
                await self._greet(address, reader, writer)
                while True:
                    size = int.from_bytes(await reader.readexactly(4))
                    self._enter(replica, pickle.loads(await reader.readexactly(size)))  # noqa: S301  # that has proved to be it
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            log.info("replica %s is not heard any longer: %s", replica, error)
        except Exception:  # what it says is not understood
            log.exception("replica %s is not heard any longer", replica)
        del self._listening[replica]
        for expected in self._expected.values():
            if expected.replica == replica:
                expected.lose()

    async def _greet(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Prove to be a gateway, and have the replica prove that it is one: its port may be another's by now. Raises OSError."""
        notice_silence(writer)
        async with asyncio.timeout(HELLO_TIMEOUT):
            challenge = (await reader.readexactly(NAME_BYTES)).decode("latin-1")
            said = challenge, self.name, secrets.token_hex(NAME_BYTES // 2)
            writer.write("".join(said[1:]).encode() + proof(address.token, "gateway", *said))
            given = await reader.readexactly(PROOF_BYTES)
        if not hmac.compare_digest(given, proof(address.token, "replica", *said)):
            raise ConnectionRefusedError("somebody else listens there")

    def _enter(self, replica: str, entries: list[Entry]) -> None:
        for number, delta, used, end in entries:
            if expected := self._expected.get(number):
                expected.enter(replica, delta, used, end)
