"""`llava-gateway chat` in a terminal and in pipes, with servers that fail or send hostile text."""

import json
import shlex
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pexpect
import pytest
from helpers.chat_command import COMMAND, FIRST, ask, quit_chat, run, terminal, wait_for_prompt
from helpers.server import free_port

pytestmark = pytest.mark.slow

DONE = b"data: [DONE]\n\n"


@dataclass
class ScriptedServer(ThreadingHTTPServer):
    """A server that gives the answers of a test in turn, and keeps the requests."""

    answers: list[tuple[int, bytes]]
    """Statuses and bodies. An event stream without its end stays open until the client disconnects."""
    models: list[str] = field(default_factory=lambda: ["scripted"])
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    daemon_threads = True

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def v1(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["authorization"])
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._send(*self.server.answers.pop(0))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)
        if body.startswith(b"data:") and not body.endswith((DONE, b"cut\n\n")):
            self.rfile.read(1)
            self.server.left.set()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer([])
    yield server
    server.shutdown()
    server.server_close()


def test_history_is_kept_in_a_private_file(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    scripted.answers = [(200, chunk("Good.", "stop") + DONE)] * 2
    child = terminal(scripted.v1, own_home)
    wait_for_prompt(child)
    ask(child, "How are you?")
    quit_chat(child)
    file = Path("state/llava-gateway/chat_history")
    assert file.stat().st_mode & 0o777 == 0o600
    child = terminal(scripted.v1, own_home)
    wait_for_prompt(child)
    child.send("\x1b[A")  # up
    child.expect_exact("How are you?")
    child.send("\r")
    child.expect_exact("Good.")
    wait_for_prompt(child)
    quit_chat(child)
    assert [asked["messages"][0]["content"] for asked in scripted.asked] == ["How are you?"] * 2


def test_image_paths_are_completed(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    Path("my pictures").mkdir()
    Path("my pictures/it's one.png").write_bytes(b"x")
    child = terminal(scripted.v1, own_home)
    wait_for_prompt(child)
    child.send("/im\tmy\tit\t")
    child.expect_exact("one.png")
    child.send("\r")
    child.expect_exact("[1 picture] > ")
    quit_chat(child)


def test_pasted_lines_are_one_question(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    scripted.answers = [(200, chunk("Yes.", "stop") + DONE)]
    child = terminal(scripted.v1, own_home)
    wait_for_prompt(child)
    child.send("\x1b[200~one\ntwo\x1b[201~\r")
    child.expect_exact("Yes.")
    wait_for_prompt(child)
    quit_chat(child)
    assert scripted.asked[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]


def test_ctrl_c_stops_the_answer_and_keeps_its_text(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    scripted.answers = [(200, chunk("one two") + b": keep-alive\n\n"), (200, chunk("three", "stop") + DONE)]
    child = terminal(scripted.v1, own_home)
    wait_for_prompt(child)
    child.sendline("Count.")
    child.expect_exact("one two")
    child.sendintr()
    child.expect_exact("stopped")
    assert scripted.left.wait(60), "the connection stayed open"
    wait_for_prompt(child)
    assert "three" in ask(child, "More.")
    assert [message["content"] for message in scripted.asked[1]["messages"]] == ["Count.", "one two", "More."]
    child.send("half a line")
    child.expect_exact("half a line")
    child.sendintr()
    wait_for_prompt(child)
    child.sendintr()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_refused_question_is_not_kept_but_can_be_retried(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    busy = json.dumps({"error": {"message": "Come back later.", "type": "overloaded"}}).encode()
    scripted.answers = [(503, busy), (200, chunk("Hi.", "stop") + DONE), (503, busy), (200, chunk("Red.", "stop") + DONE)]
    child = terminal(scripted.v1, own_home, "--image", str(FIRST))
    child.expect_exact("[1 picture] > ")
    assert "Come back later. (status 503)" in ask(child, "What is it?")
    assert "Hi." in ask(child, "Hello")
    assert "Come back later." in ask(child, "/retry")
    assert "Red." in ask(child, "/retry")
    quit_chat(child)
    assert [len(asked["messages"]) for asked in scripted.asked] == [1, 1, 1, 1]
    assert scripted.asked[0]["messages"][0]["content"][0]["type"] == "image_url"
    assert scripted.asked[1]["messages"] == scripted.asked[3]["messages"] == [{"role": "user", "content": "Hello"}]


def test_server_text_cannot_control_the_terminal(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\r\ud83d"
    escaped = json.dumps({"choices": [{"delta": {"content": f"<{evil}>"}}]}).encode()
    stream = b"data: " + escaped + b"\n\n" + chunk("one\u2028two\x85", "stop") + DONE
    refusal = json.dumps({"error": {"message": f"No {evil}"}}).encode()
    scripted.models = [f"m{evil}"]
    scripted.answers = [(200, stream), (400, refusal), (200, b'data: {"error": {"message": "Ended\\u001b[2J."}}\n\n' + DONE)]
    child = terminal(scripted.v1, own_home)
    wait_for_prompt(child)
    said = ask(child, "Hello") + ask(child, "Hello") + ask(child, "Hello") + str(child.before)
    quit_chat(child)
    assert "one\u2028two" in said
    assert "No " in said
    assert "Ended" in said
    assert not {"\x07", "\x08", "\x9b", "\x85"} & set(said)
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said


def test_closed_pipe_ends_the_command_silently(scripted: ScriptedServer, own_home: dict[str, str]) -> None:
    scripted.answers = [(200, chunk("many words " * 1000) * 50 + chunk("", "stop") + DONE)]
    script = f'{shlex.join(COMMAND)} --base-url {scripted.v1} Hello | head -c 4; exit "${{PIPESTATUS[0]}}"'
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=own_home, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + 13, "many", "")


@pytest.mark.parametrize(
    ("status", "body", "printed", "said"),
    [
        (200, chunk("half") + b'data: {"error": {"message": "The engine died."}}\n\n' + DONE, "half\n", "The engine died."),
        (200, chunk("half") + b": cut\n\n", "half\n", "before its answer was whole"),
        (200, b"data: [1]\n\n" + DONE, "", "not that of a chat completion"),
        (200, b"<html>", "", "before its answer was whole"),
        (404, b"<html>", "", "(status 404)"),
        (401, b'{"error": {"message": "Wrong key."}}', "", "Wrong key. (status 401)"),
        (422, b'{"detail": "No such field."}', "", "No such field. (status 422)"),
    ],
)
def test_failure_is_printed_in_one_line(
    scripted: ScriptedServer, own_home: dict[str, str], status: int, body: bytes, printed: str, said: str
) -> None:
    scripted.answers = [(status, body)]
    ended = run(scripted.v1, own_home, "--key", "k", "Hello")
    assert (ended.returncode, ended.stdout) == (1, printed)
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert scripted.keys == ["Bearer k"]


def test_chat_without_a_server_ends_with_one_line(own_home: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    ended = run(url, own_home, "Hello")
    assert ended.returncode == 1
    assert url in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    child = terminal(url, own_home)
    child.expect_exact(url)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "missing.png", "Hello"], "missing.png: No such file"),
        (["--image", ".", "Hello"], ".: Is a directory"),
        (["--image", "~nobody-of-this-name/a.png", "Hello"], "~nobody-of-this-name"),
        (["--base-url", "localhost:8000", "Hello"], "--base-url"),
        (["--base-url", "http://127.0.0.1:99999", "Hello"], "--base-url"),
        (["--key", "k\u00e9y", "Hello"], "--key"),
        (["--temperature", "warm", "Hello"], "--temperature"),
        (["--no-such", "Hello"], "--no-such"),
        ([], "no question"),
        ([" "], "no question"),
    ],
)
def test_wrong_argument_is_refused_in_one_line(own_home: dict[str, str], arguments: list[str], said: str) -> None:
    ended = run("http://127.0.0.1:1", own_home, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
