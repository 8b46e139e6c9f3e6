"""text-generation-webui's API: streams over WebSockets, and the stop of streams and answers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
from helpers.documentation import run_example
from helpers.server import Server, send_post
from helpers.text_generation_webui import (
    API,
    ASK,
    FIRST,
    GREEDY,
    GRID,
    HELLO,
    chat,
    events,
    generate,
    is_error,
    open_stream,
    prompt_about,
    remaining_events,
    tag,
)
from helpers.waiting import wait_for

from llava_gateway.demo.images import describe


def test_stream_gives_the_whole_answer_twice_on_one_connection(server: Server) -> None:
    with open_stream(server, "stream") as socket:
        for _ in range(2):  # a connection may be used for the next request
            *texts, end = events(socket, {"prompt": prompt_about(tag(GRID))} | GREEDY)
            assert [event["event"] for event in texts] == ["text_stream"] * len(texts)
            assert [event["message_num"] for event in texts] == list(range(len(texts)))
            assert len(texts) > 1
            assert "".join(event["text"] for event in texts).strip() == describe([GRID])
            assert end == {"event": "stream_end", "message_num": len(texts)}


def test_empty_answer_is_one_empty_event(server: Server) -> None:
    with open_stream(server, "stream") as socket:
        text, end = events(socket, {"prompt": HELLO, "stopping_strings": [" "]} | GREEDY)
        assert (text["text"], end["message_num"]) == ("", 1)


def test_chat_stream_events_grow_and_keep_the_history(server: Server) -> None:
    asked = {"user_input": f"{tag(GRID)}\n{ASK}", "history": {"internal": [["Hello", "Hi"]], "visible": [["hello", "hi"]]}}
    with open_stream(server, "chat-stream") as socket:
        *told, end = events(socket, asked | GREEDY)
        answers = [event["history"]["visible"][1][1] for event in told]
        assert len(answers) > 1
        assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(answers))
        assert all(event["history"]["internal"][0] == ["Hello", "Hi"] for event in told)
        assert all(event["history"]["visible"][0] == ["hello", "hi"] for event in told)
        assert [event["message_num"] for event in [*told, end]] == list(range(len(told) + 1))
        history = told[-1]["history"]
        regenerated = events(socket, {"history": history, "regenerate": True} | GREEDY)
        assert regenerated[-2]["history"] == history


def test_long_history_is_sent_less_often(server: Server) -> None:
    """A history of 5 MB is sent at most twice in a second, and its last event still has the whole answer."""
    asked = {
        "user_input": "Hello",
        "history": {"internal": [["Hello", "Hi"]], "visible": [["word " * 1_000_000, ""]]},
        "max_new_tokens": 100,
    }
    with open_stream(server, "chat-stream") as socket:
        start = time.monotonic()
        *told, _ = events(socket, asked | GREEDY | {"ban_eos_token": True})
        assert len(told) <= 2 + 2 * (time.monotonic() - start)
        del asked["history"]["visible"]  # type: ignore[attr-defined]
        *often, _ = events(socket, asked | GREEDY | {"ban_eos_token": True})
        assert len(often) > 50
        assert often[-1]["history"]["internal"] == told[-1]["history"]["internal"]


@pytest.mark.parametrize("message", ["", "{", "[]", "5", b"\xff\xfe", b"{}", '{"prompt": 5}'])
def test_bad_message_gets_an_error_and_the_next_one_an_answer(server: Server, message: str | bytes) -> None:
    with open_stream(server, "stream") as socket:
        socket.send(message)
        error, end = remaining_events(socket)
        assert error["event"] == "error"
        is_error(error, "prompt" if "prompt" in str(message) or message == b"{}" else None)
        assert end == {"event": "stream_end", "message_num": 0}
        assert events(socket, {"prompt": HELLO} | GREEDY)[-2]["text"]


@pytest.mark.parametrize(("path", "fields", "param"), [("stream", {"tfs": 0.5}, "tfs"), ("chat-stream", {"mode": 5}, "mode")])
def test_refused_stream_names_the_field(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    with open_stream(server, path) as socket:
        error, _ = events(socket, {"prompt": HELLO, "user_input": "Hello"} | fields)
        is_error(error, param)


ENDLESS: dict[str, Any] = {"prompt": HELLO, "ban_eos_token": True, "max_new_tokens": 4000} | GREEDY


@pytest.mark.parametrize(("path", "asked"), [("stream", ENDLESS), ("chat-stream", ENDLESS | {"user_input": "Hello"})])
def test_disconnect_from_a_stream_frees_the_slot(server: Server, path: str, asked: dict[str, Any]) -> None:
    with open_stream(server, path) as socket:
        socket.send(json.dumps(asked))
        assert json.loads(socket.recv(timeout=60))["event"] == "text_stream"
        wait_for(lambda: server.in_flight() == 2)  # in the gateway and in the engine
    wait_for(lambda: server.in_flight() == 0)


def test_disconnect_without_a_stream_frees_the_slot(server: Server) -> None:
    with send_post(server, f"{API}/generate", ENDLESS):
        wait_for(lambda: server.in_flight() == 2)
    wait_for(lambda: server.in_flight() == 0)


@pytest.mark.parametrize(("path", "asked"), [("stream", ENDLESS), ("chat-stream", ENDLESS | {"user_input": "Hello"})])
def test_stop_ends_a_stream(plain_http: httpx.Client, server: Server, path: str, asked: dict[str, Any]) -> None:
    with open_stream(server, path) as socket:
        socket.send(json.dumps(asked))
        assert json.loads(socket.recv(timeout=60))["message_num"] == 0
        assert plain_http.post(f"{API}/stop-stream").json() == {"results": "success"}  # no body is needed
        *texts, end = remaining_events(socket)
        assert end["message_num"] == len(texts) + 1 < 2000
        wait_for(lambda: server.in_flight() == 0)
        *told, end = events(socket, {"prompt": HELLO, "user_input": "Hello"} | GREEDY)
        said = told[-1]["history"]["visible"][0][1] if path == "chat-stream" else "".join(event["text"] for event in told)
        assert said.endswith("ask me to describe it."), "the next answer is complete"
        assert end["event"] == "stream_end"


def test_stop_ends_an_answer_without_a_stream(plain_http: httpx.Client, server: Server) -> None:
    before = server.engine_tokens()
    with ThreadPoolExecutor(2) as pool:
        text = pool.submit(generate, plain_http, **ENDLESS)
        turns = pool.submit(chat, plain_http, "Hello", ban_eos_token=True, max_new_tokens=4000)
        wait_for(lambda: server.in_flight() == 4 and server.engine_tokens() > before + 40)
        assert plain_http.post(f"{API}/stop-stream", json={}).status_code == 200
        assert text.result(60).startswith(" I")
        assert turns.result(60)[0][0] == "Hello"
    wait_for(lambda: server.in_flight() == 0)
    assert server.engine_tokens() < before + 2 * ENDLESS["max_new_tokens"]


def test_stop_does_not_end_another_clients_stream(plain_http: httpx.Client, server: Server) -> None:
    with open_stream(server, "stream", source_address=("127.0.0.2", 0)) as mine, open_stream(server, "stream") as other:
        for socket in (mine, other):
            socket.send(json.dumps(ENDLESS))
            assert json.loads(socket.recv(timeout=60))["event"] == "text_stream"
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=server.url, transport=transport, timeout=60) as neighbour:
            assert neighbour.post(f"{API}/stop-stream").json() == {"results": "success"}
        assert [*remaining_events(mine)][-1]["event"] == "stream_end"
        assert [json.loads(other.recv(timeout=60))["event"] for _ in range(20)] == ["text_stream"] * 20
        wait_for(lambda: server.in_flight() == 2)
        assert plain_http.post(f"{API}/stop-stream").status_code == 200
        assert [*remaining_events(other)][-1]["event"] == "stream_end"


def test_stop_without_a_running_answer_succeeds(plain_http: httpx.Client) -> None:
    assert plain_http.post(f"{API}/stop-stream").json() == {"results": "success"}


def test_webui_stream_example_runs(server: Server) -> None:
    assert [line.strip() for line in run_example(server, "webui_stream.py")] == [describe([FIRST]), "Red."]
