"""Deltas between a replica and a gateway of a cluster, over real sockets: all of them, in order, to whom they belong and to nobody else."""

import asyncio
import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llava_gateway.cluster.delta_receiver import DeltaReceiver, ReplicaLost
from llava_gateway.cluster.delta_sender import NAME_BYTES, PROOF_BYTES, Address, DeltaSender, client_context, server_context
from llava_gateway.errors import EngineFailed, InvalidRequest
from llava_gateway.types import Delta, Usage

HOST = "127.0.0.1"
USAGE = Usage(prompt_tokens=587, image_tokens=576, cached_tokens=512, completion_tokens=1)


class Replica:
    def __init__(self) -> None:
        self.gone: list[str] = []
        self.outbox = DeltaSender(self.gone.append)

    async def start(self) -> Address:
        self.address = await self.outbox.start(HOST, server_context())
        return self.address

    def say(self, gateway: str, number: int, text: str) -> None:
        self.outbox.put(gateway, number, Delta(0, text, 1), USAGE)


def run(work: Callable[[Replica, DeltaReceiver], Awaitable[None]]) -> None:
    async def main() -> None:
        replica, inbox = Replica(), DeltaReceiver(client_context())
        inbox.listen({"a": await replica.start()})
        assert await replica.outbox.reach(inbox.name)
        async with asyncio.timeout(20):
            await work(replica, inbox)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_each_request_gets_its_own_in_order() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        said: dict[int, list[str]] = {}
        answers = []
        for _ in range(3):
            texts: list[str] = []
            usage = Usage()
            number, answer = inbox.expect(usage, lambda delta, texts=texts: texts.append(delta.text))  # type: ignore[misc]
            said[number] = texts
            answers.append((number, answer, usage))
        for step in range(50):
            for number, *_ in answers:
                replica.say(inbox.name, number, f"{number}-{step}")
            await asyncio.sleep(0)
        for number, answer, usage in answers:
            assert not answer.end.done()
            replica.outbox.put(inbox.name, number, None, replace(USAGE, completion_tokens=50), True)
            await answer.end
            assert said[number] == [f"{number}-{step}" for step in range(50)]
            assert usage == replace(USAGE, completion_tokens=50)

    run(work)


def test_an_error_is_whole() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        number, answer = inbox.expect(Usage(), print)
        replica.outbox.put(inbox.name, number, None, USAGE, InvalidRequest("no such token", param="logit_bias.7", code="x"))
        with pytest.raises(InvalidRequest) as raised:
            await answer.end
        error = raised.value
        assert (error.message, error.param, error.code, error.status) == ("no such token", "logit_bias.7", "x", 400)

    run(work)


def test_of_what_is_forgotten_nothing_comes() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        texts: list[str] = []
        left, _ = inbox.expect(Usage(), lambda delta: texts.append(delta.text))
        stays, answer = inbox.expect(Usage(), lambda delta: texts.append(delta.text))
        inbox.forget(left)
        replica.say(inbox.name, left, "for nobody")
        replica.outbox.put(inbox.name, stays, None, USAGE, True)
        await answer.end
        assert texts == []

    run(work)


def test_a_lost_replica_is_missed_by_those_it_answered() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        other = Replica()
        inbox.listen({"b": await other.start()})
        assert await other.outbox.reach(inbox.name)
        (first, of_a), (second, of_b) = (inbox.expect(Usage(), lambda delta: None) for _ in range(2))
        replica.say(inbox.name, first, "I am")
        other.say(inbox.name, second, "you are")
        await until(lambda: of_a.begun and of_b.begun)
        replica.outbox._gateways[inbox.name].writer.close()  # as its process does when it dies
        with pytest.raises(ReplicaLost):
            await of_a.end
        other.outbox.put(inbox.name, second, None, USAGE, True)
        await of_b.end
        inbox.listen({"a": replica.address, "b": other.address})  # heard again
        assert await replica.outbox.reach(inbox.name)

    run(work)


def test_a_replica_knows_when_a_gateway_has_gone() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        for task in inbox._listening.values():
            task.cancel()
        await until(lambda: replica.gone)
        assert replica.gone == [inbox.name]
        replica.say(inbox.name, 1, "to nobody")
        assert not replica.outbox._gateways

    run(work)


@pytest.mark.parametrize("hello", [b"0" * 128, b"", b"\xff" * 200], ids=["wrong", "none", "long"])
def test_a_stranger_hears_nothing(hello: bytes) -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        reader, writer = await asyncio.open_connection(HOST, replica.address.port)
        writer.write(hello)
        if not hello:
            writer.write_eof()
        replica.say(inbox.name, 1, "a secret")
        assert len(await reader.read()) == NAME_BYTES  # the challenge
        assert list(replica.outbox._gateways) == [inbox.name]
        assert not replica.gone

    run(work)


def test_a_stranger_on_the_port_of_a_dead_replica_is_not_believed() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0" * (NAME_BYTES + PROOF_BYTES))
        frame = pickle.dumps([(1, Delta(0, "a lie", 1), (0, 0, 0, 1), True)])
        writer.write(len(frame).to_bytes(4) + frame)
        heard.append(await reader.readexactly(2 * NAME_BYTES + PROOF_BYTES))

    heard: list[bytes] = []

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        texts: list[str] = []
        _, answer = inbox.expect(Usage(), lambda delta: texts.append(delta.text))
        async with await asyncio.start_server(pretend, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
            inbox.listen({"b": replace(replica.address, port=port)})
            await until(lambda: heard and "b" not in inbox._listening)
        assert replica.address.token.encode() not in heard[0]
        assert not answer.begun
        assert texts == []

    run(work)


def test_unauthenticated_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.cluster.delta_sender.MAX_UNAUTHENTICATED", 3)

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        waiting = [await asyncio.open_connection(HOST, replica.address.port) for _ in range(3)]
        for reader, _ in waiting:
            await reader.readexactly(NAME_BYTES)
        reader, _ = await asyncio.open_connection(HOST, replica.address.port)
        assert await reader.read() == b""
        for _, writer in waiting:
            writer.close()
        await until(lambda: replica.outbox._unauthenticated == 0)
        again = DeltaReceiver(None)
        again.listen({"a": replica.address})
        assert await replica.outbox.reach(again.name)

    run(work)


def test_a_gateway_that_comes_anew_has_lost_what_it_had() -> None:
    """As after a break of the network that the replica has not seen."""

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        again = DeltaReceiver(None)
        again.name = inbox.name
        again.listen({"a": replica.address})
        await until(lambda: replica.gone)
        await until(lambda: not inbox._listening)
        texts: list[str] = []
        number, answer = again.expect(Usage(), lambda delta: texts.append(delta.text))
        replica.say(again.name, number, "here")
        replica.outbox.put(again.name, number, None, USAGE, True)
        await answer.end
        assert (texts, replica.gone) == (["here"], [inbox.name])

    run(work)


def test_who_reads_nothing_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.cluster.delta_sender.MOST_UNREAD", 1 << 20)

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        def stuck(delta: Delta) -> None:
            time.sleep(0.001)

        number, _ = inbox.expect(Usage(), stuck)
        while not replica.gone:
            replica.say(inbox.name, number, "long" * 500_000)
            await asyncio.sleep(0)
        assert replica.gone == [inbox.name]

    run(work)


def test_what_takers_add_to_the_usage_stays() -> None:
    """n greedy choices are one, whose deltas are taken n times."""

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        usage = Usage()

        def take(delta: Delta) -> None:
            usage.completion_tokens += 2 * delta.tokens

        number, answer = inbox.expect(usage, take)
        for tokens in (1, 2, 3):
            replica.outbox.put(inbox.name, number, Delta(0, "x", 1), replace(USAGE, completion_tokens=tokens), tokens == 3)
        await answer.end
        assert usage == replace(USAGE, completion_tokens=9)

    run(work)


def test_a_taker_that_fails_fails_alone() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        def fail(delta: Delta) -> None:
            raise ValueError(delta.text)

        (poor, of_poor), (rich, of_rich) = inbox.expect(Usage(), fail), inbox.expect(Usage(), lambda delta: None)
        replica.say(inbox.name, poor, "poison")
        replica.outbox.put(inbox.name, rich, Delta(0, "x", 1), USAGE, True)
        with pytest.raises(EngineFailed):
            await of_poor.end
        await of_rich.end

    run(work)


def test_connections_are_looked_after_by_the_kernel() -> None:
    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        connection = replica.outbox._gateways[inbox.name].writer.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert 0 < connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60

    run(work)


def test_who_does_not_listen_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.cluster.delta_sender.HELLO_TIMEOUT", 0.5)

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        assert not await replica.outbox.reach("another")
        waiting = asyncio.create_task(replica.outbox.reach(DeltaReceiver(None).name))
        assert not await waiting

    run(work)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_encrypted_where_ray_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray's variables and a certificate, deltas arrive; who shows none, or does not encrypt, hears nothing."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ray", "-keyout", str(key), "-out"]
    subprocess.run([*make, str(certificate)], check=True, capture_output=True)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(certificate))
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(key))
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(certificate))

    async def work(replica: Replica, inbox: DeltaReceiver) -> None:
        number, answer = inbox.expect(Usage(), print)
        reader, writer = await asyncio.open_connection(HOST, replica.address.port)
        writer.write(b"0" * 128)
        replica.outbox.put(inbox.name, number, None, USAGE, True)
        await answer.end
        assert replica.address.token.encode() not in await reader.read()
        assert list(replica.outbox._gateways) == [inbox.name]

    run(work)
