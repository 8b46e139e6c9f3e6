"""Deltas between a replica and a gateway of a cluster, over real sockets: all of them, in order, to whom they belong and to nobody else."""

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llava_gateway.chat import Delta, Usage
from llava_gateway.engine.ray.inbox import Inbox, Lost
from llava_gateway.engine.ray.outbox import Address, Outbox
from llava_gateway.engine.ray.tls import client_context, server_context
from llava_gateway.errors import InvalidRequest

HOST = "127.0.0.1"
USAGE = Usage(prompt_tokens=587, image_tokens=576, cached_tokens=512, completion_tokens=1)


class Replica:
    def __init__(self) -> None:
        self.gone: list[str] = []
        self.outbox = Outbox(self.gone.append)

    async def start(self) -> Address:
        self.address = await self.outbox.start(HOST, server_context())
        return self.address

    def say(self, gateway: str, number: int, text: str) -> None:
        self.outbox.put(gateway, number, Delta(0, text, 1), USAGE)


def run(work: Callable[[Replica, Inbox], Awaitable[None]]) -> None:
    async def main() -> None:
        replica, inbox = Replica(), Inbox(client_context())
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
    async def work(replica: Replica, inbox: Inbox) -> None:
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
    async def work(replica: Replica, inbox: Inbox) -> None:
        number, answer = inbox.expect(Usage(), print)
        replica.outbox.put(inbox.name, number, None, USAGE, InvalidRequest("no such token", param="logit_bias.7", code="x"))
        with pytest.raises(InvalidRequest) as raised:
            await answer.end
        error = raised.value
        assert (error.message, error.param, error.code, error.status) == ("no such token", "logit_bias.7", "x", 400)

    run(work)


def test_of_what_is_forgotten_nothing_comes() -> None:
    async def work(replica: Replica, inbox: Inbox) -> None:
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
    async def work(replica: Replica, inbox: Inbox) -> None:
        other = Replica()
        inbox.listen({"b": await other.start()})
        assert await other.outbox.reach(inbox.name)
        (first, of_a), (second, of_b) = (inbox.expect(Usage(), lambda delta: None) for _ in range(2))
        replica.say(inbox.name, first, "I am")
        other.say(inbox.name, second, "you are")
        await until(lambda: of_a.begun and of_b.begun)
        replica.outbox._gateways[inbox.name].writer.close()  # as its process does when it dies
        with pytest.raises(Lost):
            await of_a.end
        other.outbox.put(inbox.name, second, None, USAGE, True)
        await of_b.end
        inbox.listen({"a": replica.address, "b": other.address})  # heard again
        assert await replica.outbox.reach(inbox.name)

    run(work)


def test_a_replica_knows_when_a_gateway_has_gone() -> None:
    async def work(replica: Replica, inbox: Inbox) -> None:
        for task in inbox._listening.values():
            task.cancel()
        await until(lambda: replica.gone)
        assert replica.gone == [inbox.name]
        replica.say(inbox.name, 1, "to nobody")
        assert not replica.outbox._gateways

    run(work)


@pytest.mark.parametrize("hello", [b"0" * 64, b"", b"\xff" * 200], ids=["wrong", "none", "long"])
def test_a_stranger_hears_nothing(hello: bytes) -> None:
    async def work(replica: Replica, inbox: Inbox) -> None:
        reader, writer = await asyncio.open_connection(HOST, replica.address.port)
        writer.write(hello)
        if not hello:
            writer.write_eof()
        replica.say(inbox.name, 1, "a secret")
        assert await reader.read() == b""
        assert list(replica.outbox._gateways) == [inbox.name]
        assert not replica.gone

    run(work)


def test_who_does_not_listen_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.engine.ray.outbox.HELLO_TIMEOUT", 0.05)

    async def work(replica: Replica, inbox: Inbox) -> None:
        assert not await replica.outbox.reach("another")
        waiting = asyncio.create_task(replica.outbox.reach(Inbox(None).name))
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

    async def work(replica: Replica, inbox: Inbox) -> None:
        number, answer = inbox.expect(Usage(), print)
        reader, writer = await asyncio.open_connection(HOST, replica.address.port)
        writer.write((replica.address.token + "0" * 32).encode())
        replica.outbox.put(inbox.name, number, None, USAGE, True)
        await answer.end
        assert replica.address.token.encode() not in await reader.read()
        assert list(replica.outbox._gateways) == [inbox.name]

    run(work)
