"""text-generation-webui's API: streams over WebSockets, and the stop of streams and answers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
from helpers.documentation import run_example
from helpers.server import Server
from helpers.text_generation_webui import (
    API,
    ASK,
    FIRST,
    GREEDY,
    GRID,
    HELLO,
    asking,
    chat,
    events,
    generate,
    is_error,
    opened,
    rest,
    tag,
)
from helpers.waiting import wait_for

from llava_gateway.demo.images import describe


def inside(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    names = ("llava_requests_inside ", "vllm:num_requests_running")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def test_a_stream(server: Server) -> None:
    with opened(server, "stream") as socket:
        for _ in range(2):  # a connection may ask again
            *texts, end = events(socket, {"prompt": asking(tag(GRID))} | GREEDY)
            assert [event["event"] for event in texts] == ["text_stream"] * len(texts)
            assert [event["message_num"] for event in texts] == list(range(len(texts)))
            assert len(texts) > 5
            assert "".join(event["text"] for event in texts).strip() == describe([GRID])
            assert end == {"event": "stream_end", "message_num": len(texts)}


def test_a_stream_without_any_text(server: Server) -> None:
    with opened(server, "stream") as socket:
        text, end = events(socket, {"prompt": HELLO, "stopping_strings": [" "]} | GREEDY)
        assert (text["text"], end["message_num"]) == ("", 1)


def test_a_stream_of_a_chat(server: Server) -> None:
    asked = {"user_input": f"{tag(GRID)}\n{ASK}", "history": {"internal": [["Hello", "Hi"]], "visible": [["hello", "hi"]]}}
    with opened(server, "chat-stream") as socket:
        *told, end = events(socket, asked | GREEDY)
        answers = [event["history"]["visible"][1][1] for event in told]
        assert len(answers) > 5
        assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(answers))
        assert all(event["history"]["internal"][0] == ["Hello", "Hi"] for event in told)
        assert all(event["history"]["visible"][0] == ["hello", "hi"] for event in told)
        assert [event["message_num"] for event in [*told, end]] == list(range(len(told) + 1))
        history = told[-1]["history"]
        regenerated = events(socket, {"history": history, "regenerate": True} | GREEDY)
        assert regenerated[-2]["history"] == history


def test_a_long_history_is_told_less_often(server: Server) -> None:
    """Five MB of it: at most two events in a second, and the answer is whole all the same."""
    asked = {
        "user_input": "Hello",
        "history": {"internal": [["Hello", "Hi"]], "visible": [["word " * 1_000_000, ""]]},
        "max_new_tokens": 100,
    }
    with opened(server, "chat-stream") as socket:
        start = time.monotonic()
        *told, _ = events(socket, asked | GREEDY | {"ban_eos_token": True})
        assert len(told) <= 2 + 2 * (time.monotonic() - start)
        del asked["history"]["visible"]  # type: ignore[attr-defined]
        *often, _ = events(socket, asked | GREEDY | {"ban_eos_token": True})
        assert len(often) > 50
        assert often[-1]["history"]["internal"] == told[-1]["history"]["internal"]


@pytest.mark.parametrize("message", ["", "{", "[]", "5", b"\xff\xfe", b"{}", '{"prompt": 5}'])
def test_a_bad_message_is_answered_and_the_next_one_too(server: Server, message: str | bytes) -> None:
    with opened(server, "stream") as socket:
        socket.send(message)
        error, end = rest(socket)
        assert error["event"] == "error"
        is_error(error, "prompt" if "prompt" in str(message) or message == b"{}" else None)
        assert end == {"event": "stream_end", "message_num": 0}
        assert events(socket, {"prompt": HELLO} | GREEDY)[-2]["text"]


@pytest.mark.parametrize(("path", "fields", "param"), [("stream", {"tfs": 0.5}, "tfs"), ("chat-stream", {"mode": 5}, "mode")])
def test_streams_that_are_refused(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    with opened(server, path) as socket:
        error, _ = events(socket, {"prompt": HELLO, "user_input": "Hello"} | fields)
        is_error(error, param)


ENDLESS = {"prompt": HELLO, "ban_eos_token": True, "max_new_tokens": 4000} | GREEDY


@pytest.mark.parametrize(("path", "asked"), [("stream", ENDLESS), ("chat-stream", ENDLESS | {"user_input": "Hello"})])
def test_who_leaves_frees_the_place(server: Server, path: str, asked: dict[str, Any]) -> None:
    with opened(server, path) as socket:
        socket.send(json.dumps(asked))
        assert json.loads(socket.recv(timeout=60))["event"] == "text_stream"
        assert inside(server) == 2  # here, and at the engine
    wait_for(lambda: inside(server) == 0)


def test_who_leaves_without_a_stream_frees_the_place(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}{API}/generate", json=ENDLESS, timeout=1)
    wait_for(lambda: inside(server) == 0)


@pytest.mark.parametrize(("path", "asked"), [("stream", ENDLESS), ("chat-stream", ENDLESS | {"user_input": "Hello"})])
def test_stop_ends_a_stream(plain_http: httpx.Client, server: Server, path: str, asked: dict[str, Any]) -> None:
    with opened(server, path) as socket:
        socket.send(json.dumps(asked))
        assert json.loads(socket.recv(timeout=60))["message_num"] == 0
        assert plain_http.post(f"{API}/stop-stream").json() == {"results": "success"}  # a body is of no use
        *texts, end = rest(socket)
        assert end["message_num"] == len(texts) + 1 < 2000
        wait_for(lambda: inside(server) == 0)
        assert len(events(socket, {"prompt": HELLO, "user_input": "Hello"} | GREEDY)) > 2  # and the next one runs to its end


def test_stop_ends_an_answer_that_is_no_stream(plain_http: httpx.Client, server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        text = pool.submit(generate, plain_http, **ENDLESS)
        turns = pool.submit(chat, plain_http, "Hello", ban_eos_token=True, max_new_tokens=4000)
        wait_for(lambda: inside(server) == 4)
        time.sleep(0.5)
        assert plain_http.post(f"{API}/stop-stream", json={}).status_code == 200
        assert text.result(10).startswith(" I")  # with what there is
        assert turns.result(10)[0][0] == "Hello"
    wait_for(lambda: inside(server) == 0)


def test_stop_is_for_ones_own(plain_http: httpx.Client, server: Server) -> None:
    with opened(server, "stream", source_address=("127.0.0.2", 0)) as mine, opened(server, "stream") as other:
        for socket in (mine, other):
            socket.send(json.dumps(ENDLESS))
            assert json.loads(socket.recv(timeout=60))["event"] == "text_stream"
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=server.url, transport=transport) as neighbour:
            assert neighbour.post(f"{API}/stop-stream").json() == {"results": "success"}
        assert [*rest(mine)][-1]["event"] == "stream_end"
        time.sleep(0.5)
        assert inside(server) == 2
        assert plain_http.post(f"{API}/stop-stream").status_code == 200
        assert [*rest(other)][-1]["event"] == "stream_end"


def test_stop_with_nothing_to_stop(plain_http: httpx.Client) -> None:
    assert plain_http.post(f"{API}/stop-stream").json() == {"results": "success"}


def test_example_of_streams(server: Server) -> None:
    assert [line.strip() for line in run_example(server, "webui_stream.py")] == [describe([FIRST]), "Red."]
