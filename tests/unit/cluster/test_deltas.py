"""Deltas between a replica and a gateway of a cluster, over real sockets: they arrive complete, in order, and only at their own gateway."""

import asyncio
import pickle
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.deltas import HOST, USAGE, SenderReplica, run, until

from llava_gateway.cluster.delta_receiver import DeltaReceiver, ReplicaLost
from llava_gateway.cluster.delta_sender import NAME_BYTES, PROOF_BYTES
from llava_gateway.errors import EngineFailed, InvalidRequest
from llava_gateway.types import Delta, Usage


def test_each_request_gets_its_own_deltas_in_order() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        texts_of: dict[int, list[str]] = {}
        answers = []
        for _ in range(3):
            texts: list[str] = []
            usage = Usage()
            number, answer = receiver.register(usage, lambda delta, texts=texts: texts.append(delta.text))  # type: ignore[misc]
            texts_of[number] = texts
            answers.append((number, answer, usage))
        for step in range(50):
            for number, *_ in answers:
                replica.send_text(receiver.name, number, f"{number}-{step}")
            await asyncio.sleep(0)
        for number, answer, usage in answers:
            assert not answer.end.done()
            replica.sender.send(receiver.name, number, None, replace(USAGE, completion_tokens=50), True)
            await answer.end
            assert texts_of[number] == [f"{number}-{step}" for step in range(50)]
            assert usage == replace(USAGE, completion_tokens=50)

    run(work)


def test_error_keeps_its_fields() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        number, answer = receiver.register(Usage(), print)
        replica.sender.send(receiver.name, number, None, USAGE, InvalidRequest("no such token", param="logit_bias.7", code="x"))
        with pytest.raises(InvalidRequest) as raised:
            await answer.end
        error = raised.value
        assert (error.message, error.param, error.code, error.status) == ("no such token", "logit_bias.7", "x", 400)

    run(work)


def test_unregistered_request_gets_no_deltas() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        texts: list[str] = []
        left, _ = receiver.register(Usage(), lambda delta: texts.append(delta.text))
        stays, answer = receiver.register(Usage(), lambda delta: texts.append(delta.text))
        receiver.unregister(left)
        replica.send_text(receiver.name, left, "for nobody")
        replica.sender.send(receiver.name, stays, None, USAGE, True)
        await answer.end
        assert texts == []

    run(work)


def test_lost_connection_ends_only_the_answers_of_its_replica() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        other = SenderReplica()
        receiver.connect({"b": await other.start()})
        assert await other.sender.wait_until_connected(receiver.name)
        (first, answer_of_a), (second, answer_of_b) = (receiver.register(Usage(), lambda delta: None) for _ in range(2))
        replica.send_text(receiver.name, first, "I am")
        other.send_text(receiver.name, second, "you are")
        await until(lambda: answer_of_a.started and answer_of_b.started)
        replica.sender._connections[receiver.name].writer.close()  # as the kernel does when the process dies
        with pytest.raises(ReplicaLost):
            await answer_of_a.end
        other.sender.send(receiver.name, second, None, USAGE, True)
        await answer_of_b.end
        receiver.connect({"a": replica.address, "b": other.address})  # a replica may connect again
        assert await replica.sender.wait_until_connected(receiver.name)

    run(work)


def test_replica_notices_that_a_gateway_has_gone() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        for task in receiver._connections.values():
            task.cancel()
        await until(lambda: replica.disconnected)
        assert replica.disconnected == [receiver.name]
        replica.send_text(receiver.name, 1, "to nobody")
        assert not replica.sender._connections

    run(work)


@pytest.mark.parametrize("hello", [b"0" * 128, b"", b"\xff" * 200], ids=["wrong", "none", "long"])
def test_program_without_the_token_gets_no_deltas(hello: bytes) -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        reader, writer = await asyncio.open_connection(HOST, replica.address.port)
        writer.write(hello)
        if not hello:
            writer.write_eof()
        replica.send_text(receiver.name, 1, "a secret")
        assert len(await reader.read()) == NAME_BYTES  # the challenge
        assert list(replica.sender._connections) == [receiver.name]
        assert not replica.disconnected

    run(work)


def test_program_on_the_port_of_a_dead_replica_is_refused() -> None:
    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0" * (NAME_BYTES + PROOF_BYTES))
        frame = pickle.dumps([(1, Delta(0, "a lie", 1), (0, 0, 0, 1), True)])
        writer.write(len(frame).to_bytes(4) + frame)
        received.append(await reader.readexactly(2 * NAME_BYTES + PROOF_BYTES))

    received: list[bytes] = []

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        texts: list[str] = []
        _, answer = receiver.register(Usage(), lambda delta: texts.append(delta.text))
        async with await asyncio.start_server(impostor, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
            receiver.connect({"b": replace(replica.address, port=port)})
            await until(lambda: received and "b" not in receiver._connections)
        assert replica.address.token.encode() not in received[0]
        assert not answer.started
        assert texts == []

    run(work)


def test_unauthenticated_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.cluster.delta_sender.MAX_UNAUTHENTICATED", 3)

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        waiting = [await asyncio.open_connection(HOST, replica.address.port) for _ in range(3)]
        for reader, _ in waiting:
            await reader.readexactly(NAME_BYTES)
        reader, _ = await asyncio.open_connection(HOST, replica.address.port)
        assert await reader.read() == b""
        for _, writer in waiting:
            writer.close()
        await until(lambda: replica.sender._unauthenticated == 0)
        again = DeltaReceiver(None)
        again.connect({"a": replica.address})
        assert await replica.sender.wait_until_connected(again.name)

    run(work)


def test_gateway_that_connects_again_has_lost_its_requests() -> None:
    """So it is after an interruption of the network that the replica has not noticed."""

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        again = DeltaReceiver(None)
        again.name = receiver.name
        again.connect({"a": replica.address})
        await until(lambda: replica.disconnected)
        await until(lambda: not receiver._connections)
        texts: list[str] = []
        number, answer = again.register(Usage(), lambda delta: texts.append(delta.text))
        replica.send_text(again.name, number, "here")
        replica.sender.send(again.name, number, None, USAGE, True)
        await answer.end
        assert (texts, replica.disconnected) == (["here"], [receiver.name])

    run(work)


def test_gateway_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.cluster.delta_sender.MAX_UNREAD", 1 << 20)

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        def block(delta: Delta) -> None:
            time.sleep(0.001)

        number, _ = receiver.register(Usage(), block)
        while not replica.disconnected:
            replica.send_text(receiver.name, number, "long" * 500_000)
            await asyncio.sleep(0)
        assert replica.disconnected == [receiver.name]

    run(work)


def test_tokens_that_on_delta_adds_to_the_usage_stay() -> None:
    """n greedy choices are generated once, and their tokens are counted n times."""

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        usage = Usage()

        def on_delta(delta: Delta) -> None:
            usage.completion_tokens += 2 * delta.tokens

        number, answer = receiver.register(usage, on_delta)
        for tokens in (1, 2, 3):
            replica.sender.send(receiver.name, number, Delta(0, "x", 1), replace(USAGE, completion_tokens=tokens), tokens == 3)
        await answer.end
        assert usage == replace(USAGE, completion_tokens=9)

    run(work)


def test_error_of_on_delta_ends_only_its_request() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        def fail(delta: Delta) -> None:
            raise ValueError(delta.text)

        (failing, failing_answer), (other, other_answer) = receiver.register(Usage(), fail), receiver.register(Usage(), lambda delta: None)
        replica.send_text(receiver.name, failing, "poison")
        replica.sender.send(receiver.name, other, Delta(0, "x", 1), USAGE, True)
        with pytest.raises(EngineFailed):
            await failing_answer.end
        await other_answer.end

    run(work)


def test_kernel_probes_silent_connections() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        connection = replica.sender._connections[receiver.name].writer.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert 0 < connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60

    run(work)


def test_replica_does_not_wait_long_for_a_gateway_that_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.cluster.delta_sender.HELLO_TIMEOUT", 0.5)

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        assert not await replica.sender.wait_until_connected("another")
        waiting = asyncio.create_task(replica.sender.wait_until_connected(DeltaReceiver(None).name))
        assert not await waiting

    run(work)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_deltas_are_encrypted_if_ray_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray's variables and a certificate, deltas arrive. A client without encryption gets nothing."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ray", "-keyout", str(key), "-out"]
    subprocess.run([*make, str(certificate)], check=True, capture_output=True)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(certificate))
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(key))
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(certificate))

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        number, answer = receiver.register(Usage(), print)
        reader, writer = await asyncio.open_connection(HOST, replica.address.port)
        writer.write(b"0" * 128)
        replica.sender.send(receiver.name, number, None, USAGE, True)
        await answer.end
        assert replica.address.token.encode() not in await reader.read()
        assert list(replica.sender._connections) == [receiver.name]

    run(work)
