"""Host names of image URLs, resolved by a local name server that answers correctly, late, or never."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast

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

PATIENT = {"image_timeout": 60, "image_connect_timeout": 60, "image_read_timeout": 60}
"""Timeouts in seconds that do not expire on a busy machine."""


@pytest.fixture
def names() -> Iterator[NameServer]:
    with nameserver.running() as server:
        yield server


def run(names: NameServer, work: Callable[[Fetcher], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        fetcher = Fetcher(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **PATIENT | settings))
        fetcher.resolver.servers = [names.address]
        try:
            await asyncio.wait_for(work(fetcher), 120)
        finally:
            await fetcher.close()

    asyncio.run(main())


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 # there is no event for this
        await asyncio.sleep(0.01)


async def is_refused(fetch: Awaitable[object]) -> bool:
    try:
        await fetch
    except InvalidImage as error:
        return error.code == "failed_to_download_image"
    return False


def test_names_without_an_answer_delay_no_other_name_and_hold_no_slot(names: NameServer, origin: Origin) -> None:
    """There are more of these names than concurrent downloads, and than threads in the event loop's pool."""
    names.define("good.example", ["127.0.0.1"])
    for number in range(40):
        names.define(f"silent{number}.example")

    async def work(fetcher: Fetcher) -> None:
        silent = [asyncio.create_task(fetcher.fetch(f"http://silent{number}.example/")) for number in range(40)]
        await wait_until(lambda: all(names.lookups(f"silent{number}.example") for number in range(40)))
        assert (await fetcher.fetch(f"http://good.example:{origin.server_port}/picture")).data == encode(draw(GRID))
        assert not any(task.done() for task in silent)
        for task in silent:
            task.cancel()
        results = await asyncio.gather(*silent, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    run(names, work, image_downloads=1)


def test_a_name_without_an_answer_does_not_outlast_the_connect_timeout(names: NameServer) -> None:
    names.define("silent.example")

    async def work(fetcher: Fetcher) -> None:
        assert await is_refused(fetcher.fetch("http://silent.example/"))

    run(names, work, image_timeout=1000, image_connect_timeout=0.3)


def test_an_unknown_name_is_not_reported_as_a_server_error(names: NameServer) -> None:
    async def work(fetcher: Fetcher) -> None:
        for host in ("unknown.example", "a_b.example", "x" * 63 + ".example", ".".join(["x" * 60] * 4)):
            assert await is_refused(fetcher.fetch(f"http://{host}/"))

    run(names, work)


def test_a_lookup_does_not_outlive_its_cancelled_requests(names: NameServer) -> None:
    names.define("silent.example")

    async def work(fetcher: Fetcher) -> None:
        before = asyncio.all_tasks()
        tasks = [asyncio.create_task(fetcher.fetch("http://silent.example/")) for _ in range(3)]
        await wait_until(lambda: names.lookups("silent.example") > 0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await wait_until(lambda: asyncio.all_tasks() == before)

    run(names, work)


def test_concurrent_lookups_of_one_name_send_one_query(names: NameServer) -> None:
    names.define("slow.example", ["127.0.0.1"], delay=0.3)

    async def work(fetcher: Fetcher) -> None:
        found = await asyncio.gather(*(fetcher.resolver.addresses("slow.example") for _ in range(20)))
        assert found == [[ip_address("127.0.0.1")]] * 20
        assert names.lookups("slow.example") == 1

    run(names, work)


def test_an_answer_is_cached_no_longer_than_its_time_to_live(names: NameServer) -> None:
    names.define("hour.example", ["127.0.0.1"], ["127.0.0.2"], ttl=3600)
    names.define("second.example", ["127.0.0.1"], ["127.0.0.2"], ttl=1)
    names.define("zero.example", ["127.0.0.1"], ["127.0.0.2"])

    async def work(fetcher: Fetcher) -> None:
        async def ask(name: str) -> str:
            return str(*await fetcher.resolver.addresses(name))

        assert [await ask("zero.example") for _ in range(2)] == ["127.0.0.1", "127.0.0.2"]
        assert [await ask("hour.example") for _ in range(2)] == ["127.0.0.1", "127.0.0.1"]
        assert names.lookups("hour.example") == 1
        while await ask("second.example") == "127.0.0.1":  # noqa: ASYNC110 # there is no event for this
            await asyncio.sleep(0.01)
        assert names.lookups("second.example") == 2

    run(names, work)


def test_the_cache_of_names_is_limited_in_size(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_CACHED", 3)
    for number in range(4):
        names.define(f"cached{number}.example", ["127.0.0.1"], ttl=3600)

    async def work(fetcher: Fetcher) -> None:
        for number in (0, 0, 1, 2, 0):
            await fetcher.resolver.addresses(f"cached{number}.example")
        assert names.lookups("cached0.example") == 2

    run(names, work)


def test_a_lookup_blocks_no_thread(names: NameServer, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """`socket.getaddrinfo` blocks a thread until the name server answers, and cannot be cancelled."""

    def getaddrinfo(*arguments: object, **options: object) -> None:
        raise AssertionError("a blocking lookup")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"http://localhost:{origin.server_port}/picture")).data

    run(names, work)


def test_names_in_the_hosts_file_are_not_sent_to_the_name_server(names: NameServer) -> None:
    def hosts() -> Iterator[tuple[str, str]]:
        for line in Path("/etc/hosts").read_text().splitlines():
            address, *aliases = line.partition("#")[0].split() or [""]
            yield from ((alias, address) for alias in aliases if alias != "localhost" and address != "::1")

    async def work(fetcher: Fetcher) -> None:
        for name, address in hosts():
            assert ip_address(address) in await fetcher.resolver.addresses(name)
            assert not names.lookups(name)

    run(names, work)


def test_a_name_with_a_private_ipv6_address_is_refused(names: NameServer) -> None:
    names.define("mixed.example", ["1.1.1.1", "fd00::5efe:808:808"])

    async def work(fetcher: Fetcher) -> None:
        with pytest.raises(InvalidImage, match="network"):
            await fetcher.fetch("http://mixed.example/")

    run(names, work)


def test_a_name_with_thousands_of_addresses_is_refused(names: NameServer) -> None:
    names.define("many.example", [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(2000)])

    async def work(fetcher: Fetcher) -> None:
        with pytest.raises(OSError, match="addresses"):
            await fetcher.resolver.addresses("many.example")

    run(names, work)


def test_an_unreachable_address_does_not_fail_the_fetch(names: NameServer, origin: Origin) -> None:
    names.define("several.example", ["127.0.0.4", "127.0.0.3", "127.0.0.2", "127.0.0.1"])  # the origin listens only on the last address

    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"http://several.example:{origin.server_port}/picture")).data
        assert origin.requests[-1][1]["host"] == f"several.example:{origin.server_port}"

    run(names, work)


def test_an_address_without_an_answer_does_not_use_up_the_timeout() -> None:
    dialled = []

    class Dialer(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any) -> httpcore.AsyncNetworkStream:
            dialled.append((host, timeout))
            if host != "10.0.0.3":
                raise httpcore.ConnectTimeout
            return httpcore.AsyncMockStream([])

    async def main() -> None:
        backend = NetworkBackend([ip_address(f"10.0.0.{number}") for number in (1, 2, 3)], asyncio.Lock())
        backend._dialer = cast(Any, Dialer())
        await backend.connect_tcp("several.example", 80, 8)

    asyncio.run(main())
    assert [host for host, _ in dialled] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert [round(timeout or 0) for _, timeout in dialled] == [4, 4, 8]


def test_a_host_with_many_addresses_is_not_dialled_at_all_of_them() -> None:
    class Dialer(httpcore.AsyncNetworkBackend):
        dialled = 0

        async def connect_tcp(self, *arguments: Any) -> httpcore.AsyncNetworkStream:
            self.dialled += 1
            raise httpcore.ConnectError

    async def main() -> None:
        backend = NetworkBackend([ip_address(number) for number in range(100)], asyncio.Lock())
        dialer = Dialer()
        backend._dialer = cast(Any, dialer)
        with pytest.raises(httpcore.ConnectError):
            await backend.connect_tcp("many.example", 80, 8)
        assert dialer.dialled == network.MAX_DIALS

    asyncio.run(main())


def test_closing_an_unused_resolver_does_not_fail() -> None:
    asyncio.run(Resolver(1).close())
