"""Host names of image URLs, resolved by a real name server that answers well, late, or not at all."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import httpcore
import pytest
from helpers import nameserver
from helpers.nameserver import NameServer
from helpers.origin import GRID, Origin

from llava_gateway.demo.images import draw, encode
from llava_gateway.errors import InvalidImage
from llava_gateway.images import network, resolver
from llava_gateway.images.fetch import Fetcher
from llava_gateway.images.network import NetworkBackend
from llava_gateway.images.resolver import Resolver
from llava_gateway.settings import Settings


@pytest.fixture
def names() -> Iterator[NameServer]:
    with nameserver.running() as server:
        yield server


def run(names: NameServer, work: Callable[[Fetcher], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        fetcher = Fetcher(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **settings))
        fetcher.resolver.servers = [names.address]
        try:
            await asyncio.wait_for(work(fetcher), 60)
        finally:
            await fetcher.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 # it has no event
        await asyncio.sleep(0.01)


async def fails(fetch: Awaitable[object]) -> bool:
    try:
        await fetch
    except InvalidImage as error:
        return error.code == "failed_to_download_image"
    return False


def test_silent_names_delay_no_other_name_and_hold_no_slot(names: NameServer, origin: Origin) -> None:
    """More of them than downloads at once, and than threads of the event loop's pool."""
    names.define("good.example", ["127.0.0.1"])
    for number in range(40):
        names.define(f"silent{number}.example")

    async def work(fetcher: Fetcher) -> None:
        silent = [asyncio.create_task(fetcher.fetch(f"http://silent{number}.example/")) for number in range(40)]
        await until(lambda: all(names.lookups(f"silent{number}.example") for number in range(40)))
        assert (await fetcher.fetch(f"http://good.example:{origin.server_port}/picture")).data == encode(draw(GRID))
        assert not any(task.done() for task in silent)
        for task in silent:
            task.cancel()
        assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*silent, return_exceptions=True))

    run(names, work, image_downloads=1, image_timeout=60, image_connect_timeout=60)


def test_a_silent_name_is_given_up_within_the_time_to_connect(names: NameServer) -> None:
    names.define("silent.example")

    async def work(fetcher: Fetcher) -> None:
        assert await fails(fetcher.fetch("http://silent.example/"))

    run(names, work, image_timeout=1000, image_connect_timeout=0.3)


def test_an_unknown_name_is_no_server_error(names: NameServer) -> None:
    async def work(fetcher: Fetcher) -> None:
        for host in ("unknown.example", "a_b.example", "x" * 63 + ".example", ".".join(["x" * 60] * 4)):
            assert await fails(fetcher.fetch(f"http://{host}/"))

    run(names, work)


def test_a_lookup_whose_requests_have_left_ends(names: NameServer) -> None:
    names.define("silent.example")

    async def work(fetcher: Fetcher) -> None:
        before = asyncio.all_tasks()
        tasks = [asyncio.create_task(fetcher.fetch("http://silent.example/")) for _ in range(3)]
        await until(lambda: names.lookups("silent.example") > 0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: asyncio.all_tasks() == before)

    run(names, work, image_timeout=60, image_connect_timeout=60)


def test_equal_names_at_once_are_looked_up_once(names: NameServer) -> None:
    names.define("slow.example", ["127.0.0.1"], delay=0.3)

    async def work(fetcher: Fetcher) -> None:
        found = await asyncio.gather(*(fetcher.resolver.addresses("slow.example") for _ in range(20)))
        assert found == [[ip_address("127.0.0.1")]] * 20
        assert names.lookups("slow.example") == 1

    run(names, work, image_connect_timeout=30)


def test_an_answer_is_kept_for_its_time_to_live(names: NameServer) -> None:
    names.define("kept.example", ["127.0.0.1"], ["127.0.0.2"], ttl=1)
    names.define("anew.example", ["127.0.0.1"], ["127.0.0.2"])

    async def work(fetcher: Fetcher) -> None:
        async def ask(name: str) -> str:
            return str(*await fetcher.resolver.addresses(name))

        assert [await ask("anew.example"), await ask("anew.example")] == ["127.0.0.1", "127.0.0.2"]
        assert await ask("kept.example") == "127.0.0.1"
        asked = 1
        while await ask("kept.example") == "127.0.0.1":
            asked += 1
            await asyncio.sleep(0.01)
        assert asked > 1
        assert names.lookups("kept.example") == 2

    run(names, work)


def test_the_cache_of_names_is_bounded(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_CACHED", 3)
    for number in range(4):
        names.define(f"kept{number}.example", ["127.0.0.1"], ttl=3600)

    async def work(fetcher: Fetcher) -> None:
        for number in (0, 0, 1, 2, 0):
            await fetcher.resolver.addresses(f"kept{number}.example")
        assert names.lookups("kept0.example") == 2

    run(names, work)


def test_names_need_no_thread(names: NameServer, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo blocks a thread until the name server answers; nothing can stop it."""

    def getaddrinfo(*arguments: object, **options: object) -> None:
        raise AssertionError("a blocking lookup")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"http://localhost:{origin.server_port}/picture")).data

    run(names, work)


def test_names_of_the_hosts_file(names: NameServer) -> None:
    def hosts() -> Iterator[tuple[str, str]]:
        for line in Path("/etc/hosts").read_text().splitlines():
            address, *aliases = line.partition("#")[0].split() or [""]
            yield from ((alias, address) for alias in aliases if alias != "localhost" and address != "::1")

    async def work(fetcher: Fetcher) -> None:
        for name, address in hosts():
            assert ip_address(address) in await fetcher.resolver.addresses(name)
            assert not names.lookups(name)

    run(names, work)


def test_a_private_address_of_the_other_family_refuses_a_name(names: NameServer) -> None:
    names.define("mixed.example", ["1.1.1.1", "fd00::5efe:808:808"])

    async def work(fetcher: Fetcher) -> None:
        with pytest.raises(InvalidImage, match="network"):
            await fetcher.fetch("http://mixed.example/")

    run(names, work)


def test_a_name_of_thousands_of_addresses_is_refused(names: NameServer) -> None:
    names.define("many.example", [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(2000)])

    async def work(fetcher: Fetcher) -> None:
        with pytest.raises(OSError, match="addresses"):
            await fetcher.resolver.addresses("many.example")

    run(names, work)


def test_the_next_address_is_dialled_when_one_cannot_be_connected_to(names: NameServer, origin: Origin) -> None:
    names.define("several.example", ["127.0.0.4", "127.0.0.3", "127.0.0.2", "127.0.0.1"])  # the origin listens on the last alone

    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"http://several.example:{origin.server_port}/picture")).data
        assert origin.requests[-1][1]["host"] == f"several.example:{origin.server_port}"

    run(names, work)


def test_an_address_that_does_not_answer_leaves_time_for_the_next() -> None:
    dialled = []

    class Dialer(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any) -> httpcore.AsyncNetworkStream:
            dialled.append((host, timeout))
            if host != "10.0.0.3":
                raise httpcore.ConnectTimeout
            return httpcore.AsyncMockStream([])

    async def main() -> None:
        backend = NetworkBackend([ip_address(f"10.0.0.{number}") for number in (1, 2, 3)], asyncio.Lock())
        backend._dialer = Dialer()
        await backend.connect_tcp("several.example", 80, 8)

    asyncio.run(main())
    assert [host for host, _ in dialled] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert [round(timeout) for _, timeout in dialled] == [4, 4, 8]


def test_no_more_than_a_few_addresses_are_dialled() -> None:
    class Dialer(httpcore.AsyncNetworkBackend):
        dialled = 0

        async def connect_tcp(self, *arguments: Any) -> httpcore.AsyncNetworkStream:
            self.dialled += 1
            raise httpcore.ConnectError

    async def main() -> None:
        backend = NetworkBackend([ip_address(number) for number in range(100)], asyncio.Lock())
        backend._dialer = dialer = Dialer()
        with pytest.raises(httpcore.ConnectError):
            await backend.connect_tcp("many.example", 80, 8)
        assert dialer.dialled == network.MAX_DIALS

    asyncio.run(main())


def test_a_resolver_that_was_never_asked_closes() -> None:
    asyncio.run(Resolver(1).close())
