"""Image URLs over TLS: the certificate must be valid for the name in the URL, and the limits on time and work also hold."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers import nameserver
from helpers.hostile_origin import CONTENT, Stalls, hostile_origin

from llava_gateway.errors import InvalidImage
from llava_gateway.images.fetch import Fetcher
from llava_gateway.images.network import tls_context
from llava_gateway.settings import Settings

PATIENT = {"image_timeout": 120, "image_connect_timeout": 120, "image_read_timeout": 120}
"""Timeouts in seconds that do not expire on a busy machine."""
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for tls.example, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=tls.example", "-addext", "subjectAltName=DNS:tls.example"]
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *subject,
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(make, check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def port(certificate: tuple[Path, Path]) -> Iterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with hostile_origin(context) as url:
        yield urlsplit(url).port or 0


def run(certificate: tuple[Path, Path], work: Callable[[Fetcher], Awaitable[None]], **settings: Any) -> None:
    async def main(address: str) -> None:
        fetcher = Fetcher(Settings(allow_networks=(ip_network("127.0.0.0/8"),), **{"max_image_mb": 1} | PATIENT | settings))
        fetcher.resolver.servers = [address]
        fetcher._tls.load_verify_locations(certificate[0])
        try:
            await work(fetcher)
        finally:
            await fetcher.close()

    with nameserver.running() as names:
        for name in ("tls.example", "other.example"):
            names.define(name, ["127.0.0.1"])
        asyncio.run(main(names.address))


def test_a_certificate_for_another_name_is_refused(certificate: tuple[Path, Path], port: int) -> None:
    async def work(fetcher: Fetcher) -> None:
        assert (await fetcher.fetch(f"https://tls.example:{port}/good")).data == CONTENT
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(InvalidImage, match="could not be downloaded"):
                await fetcher.fetch(f"https://{host}:{port}/good")

    run(certificate, work)


def test_records_of_one_byte_do_not_block_the_event_loop(certificate: tuple[Path, Path], port: int) -> None:
    async def work(fetcher: Fetcher) -> None:
        async with Stalls() as stalls:
            hostile = [asyncio.create_task(fetcher.fetch(f"https://tls.example:{port}/tiny-segments")) for _ in range(8)]
            results = await asyncio.gather(*hostile, return_exceptions=True)
        assert all(isinstance(result, InvalidImage) for result in results)
        assert stalls.longest < 0.2

    run(certificate, work, image_timeout=3)


def test_a_handshake_without_end_does_not_outlast_the_connect_timeout(certificate: tuple[Path, Path]) -> None:
    """The origin sends the bytes of a TLS record one at a time, and never completes the record."""
    stop = threading.Event()

    def origin(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\x16\x03\x03\x40\x00")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"\x02")
                except OSError:
                    return

    async def work(fetcher: Fetcher) -> None:
        with pytest.raises(InvalidImage, match="took longer"):
            await fetcher.fetch(f"https://tls.example:{listener.getsockname()[1]}/")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=origin, args=(listener,), daemon=True)
        thread.start()
        run(certificate, work, image_timeout=1000, image_connect_timeout=0.5)
        stop.set()
        thread.join(30)


def test_a_server_cannot_request_expensive_cryptography() -> None:
    context = tls_context()
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert not any("DHE-" in cipher["name"] and "ECDHE-" not in cipher["name"] for cipher in context.get_ciphers())
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
