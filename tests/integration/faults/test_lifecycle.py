"""Clients that disconnect, and a server that is stopped."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest
from helpers.processes import descendants
from helpers.requests import body, image
from helpers.server import Server, free_port, send_post, serve
from helpers.waiting import wait_for
from openai import APITimeoutError, OpenAI

from llava_gateway.demo.images import COLORS

CHAT = "/v1/chat/completions"
LONG = {"ignore_eos": True, "max_tokens": 3500}


def running(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(("vllm:num_requests_running", "llava_requests_running")))


def wait_for_running(http: httpx.Client, count: float) -> None:
    wait_for(lambda: running(http) == count, why=lambda: f"{running(http)} requests run, not {count}")


@contextlib.contextmanager
def cancelled_generation(server: Server, http: httpx.Client, tokens: int) -> Iterator[None]:
    """Check that the requests of the block end after it, before they have generated these tokens."""
    before = server.engine_tokens()
    yield
    wait_for_running(http, 0)
    assert server.engine_tokens() < before + tokens


def test_killed_curl_ends_its_generation(server: Server, http: httpx.Client) -> None:
    command = ["curl", "-sN", server.v1 + "/chat/completions", "-H", "content-type: application/json", "-d", "@-"]
    with cancelled_generation(server, http, 3500), subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as curl:
        assert curl.stdin
        assert curl.stdout
        curl.stdin.write(orjson.dumps(body("Hello", stream=True, **LONG)))
        curl.stdin.close()
        for _ in range(10):
            assert curl.stdout.readline()
        wait_for_running(http, 2)  # one in the gateway, one in the engine
        curl.kill()


def test_engine_runs_in_the_early_process_without_unused_modules(server: Server) -> None:
    """Otherwise each start takes twice as long, and each process 110 MB more."""
    gateway = psutil.Process(server.process.pid)
    (engine,) = descendants(gateway.pid, "EngineCore")
    libraries = {mapped.path for process in (gateway, engine) for mapped in process.memory_maps()}
    assert not [path for path in libraries if "/ray/" in path or "/triton/" in path or "/grpc/" in path]
    assert "started anew" not in server.log.read_text()


def test_disconnect_without_a_stream_ends_the_generation(server: Server, http: httpx.Client) -> None:
    asked = body(image(("red",) * 4), "Hello", max_tokens=3000, ignore_eos=True)
    with cancelled_generation(server, http, 3000), send_post(server, CHAT, asked):
        wait_for_running(http, 2)


def test_disconnect_during_the_body_is_harmless(server: Server, http: httpx.Client) -> None:
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{{".encode())
    assert http.get("/ready").status_code == 200


def test_many_disconnects_leave_no_request_running(server: Server, live_client: OpenAI, http: httpx.Client) -> None:
    def disconnect(number: int) -> None:
        with live_client.chat.completions.create(
            **body(f"Hello {number}", max_tokens=3000), stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            for _ in range(number % 5):
                next(stream)

    with cancelled_generation(server, http, 40 * 3000), ThreadPoolExecutor(20) as pool:
        list(pool.map(disconnect, range(40)))


def test_disconnect_does_not_spoil_an_image_for_the_next_client(client: OpenAI, http: httpx.Client) -> None:
    """A client that disconnects while vLLM reads its image must not spoil the image for the next client."""
    images = [image((first, second, "red", "blue")) for first in COLORS for second in COLORS][:40]

    def disconnect(number: int) -> None:
        impatient = client.with_options(timeout=0.02 * (number % 10 + 1))
        with contextlib.suppress(APITimeoutError):
            impatient.chat.completions.create(**body(images[number], "Hello", max_tokens=50))

    def stay(number: int) -> Any:
        return client.chat.completions.create(**body(images[number], "Hello", max_tokens=1)).choices[0].finish_reason

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(disconnect, range(40)))
        assert list(pool.map(stay, range(40))) == ["length"] * 40
    wait_for_running(http, 0)


@pytest.mark.slow
def test_sigterm_during_loading_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM comes early or late. The time goes into imports, each on one core, which nothing interrupts."""

    def stop_after(seconds: float) -> None:
        command = [sys.executable, "-m", "llava_gateway", "serve", "llava-demo", "--port", str(free_port())]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(seconds)  # a moment in the start, not a wait
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            assert process.wait(120) in (0, -signal.SIGTERM)  # before it serves, the signal's default action ends it
            assert process.stderr
            assert "Traceback" not in process.stderr.read()
        assert not psutil.wait_procs(children, timeout=30)[1]

    with ThreadPoolExecutor() as pool:
        list(pool.map(stop_after, (1, 4, 9)))


def test_sigterm_lets_requests_finish_and_leaves_no_process(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        client = OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        stream = client.chat.completions.create(**body("Hello", max_tokens=400), stream=True, extra_body={"ignore_eos": True})
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
        assert server.process.wait(60) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
        assert "Traceback" not in server.log.read_text()
