"""Clients that leave, and a server that is told to stop."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import psutil
import pytest
from helpers.requests import body, image
from helpers.server import Server, free_port
from helpers.waiting import wait_for
from openai import APITimeoutError, OpenAI

from llava_gateway.demo.images import COLORS

CHAT = "/v1/chat/completions"
LONG = {"ignore_eos": True, "max_tokens": 3500}


def running(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(("vllm:num_requests_running", "llava_requests_running")))


def wait_for_running(http: httpx.Client, count: float, seconds: float) -> None:
    wait_for(lambda: running(http) == count, seconds, lambda: f"{running(http)} requests run, not {count}")


def test_killed_curl_ends_its_generation(server: Server, http: httpx.Client) -> None:
    command = ["curl", "-sN", server.v1 + "/chat/completions", "-H", "content-type: application/json", "-d", "@-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as curl:
        assert curl.stdin
        assert curl.stdout
        curl.stdin.write(orjson.dumps(body("Hello", stream=True, **LONG)))
        curl.stdin.close()
        for _ in range(10):
            assert curl.stdout.readline()
        wait_for_running(http, 2, 2)  # one in the gateway, one in the engine
        curl.kill()
    wait_for_running(http, 0, 1)


def test_disconnect_without_a_stream_ends_the_generation(server: Server, http: httpx.Client) -> None:
    content = orjson.dumps(body(image(("red",) * 4), "Hello", max_tokens=3000, ignore_eos=True))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.create_connection((server.url.split("/")[2].split(":")[0], int(server.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(head.encode() + content)
        wait_for_running(http, 2, 5)
    wait_for_running(http, 0, 1)


def test_disconnect_during_the_body_is_harmless(server: Server, http: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{{".encode())
    assert http.get("/ready").status_code == 200


def test_many_disconnects_leave_no_request_running(live_client: OpenAI, http: httpx.Client) -> None:
    def leave(number: int) -> None:
        with live_client.chat.completions.create(
            **body(f"Hello {number}", max_tokens=3000), stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            for _ in range(number % 5):
                next(stream)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(leave, range(40)))
    wait_for_running(http, 0, 2)


def test_disconnect_does_not_spoil_an_image_for_the_next_client(client: OpenAI, http: httpx.Client) -> None:
    """A client that leaves while vLLM takes its picture in must not spoil the picture for the next one."""
    pictures = [image((first, second, "red", "blue")) for first in COLORS for second in COLORS][:40]

    def leave(number: int) -> None:
        impatient = client.with_options(timeout=0.02 * (number % 10 + 1))
        with contextlib.suppress(APITimeoutError):
            impatient.chat.completions.create(**body(pictures[number], "Hello", max_tokens=50))

    def stay(number: int) -> str | None:
        return client.chat.completions.create(**body(pictures[number], "Hello", max_tokens=1)).choices[0].finish_reason

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(leave, range(40)))
        assert list(pool.map(stay, range(40))) == ["length"] * 40
    wait_for_running(http, 0, 2)


def test_sigterm_during_loading_leaves_no_process(tmp_path: Path) -> None:
    """Early and late. What takes the time are imports, each on one core, which nothing interrupts."""

    def stop_after(seconds: float) -> None:
        command = [sys.executable, "-m", "llava_gateway", "serve", "llava-demo", "--port", str(free_port())]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(seconds)
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            assert process.wait(60) in (0, -signal.SIGTERM)  # before it has begun to serve, the signal's own way
            assert process.stderr
            assert "Traceback" not in process.stderr.read()
        assert not psutil.wait_procs(children, timeout=2)[1]

    with ThreadPoolExecutor() as pool:
        list(pool.map(stop_after, (1, 4, 9)))


@pytest.mark.last
def test_sigterm_lets_requests_finish_and_leaves_no_process(server: Server, http: httpx.Client, live_client: OpenAI) -> None:
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    stream = live_client.chat.completions.create(**body("Hello", max_tokens=400), stream=True, extra_body={"ignore_eos": True})
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    *_, last = stream
    assert last.choices[0].finish_reason == "length"
    assert server.process.wait(30) == 0
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert "Traceback" not in server.log.read_text()
