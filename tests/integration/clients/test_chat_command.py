"""`llava-gateway chat` with the real engine, in a terminal and in a pipe."""

import json
import os
import shlex
from pathlib import Path

import httpx
import pexpect
import psutil
import pytest
from helpers.chat_command import FIRST, SECOND, ask, quit_chat, run, terminal, wait_for_prompt
from helpers.requests import MODEL
from helpers.server import Server

from llava_gateway.demo.images import describe

FIRST_GRID = ("red", "blue", "green", "white")
SECOND_GRID = ("yellow", "black", "orange", "purple")


def test_image_can_be_added_during_a_chat(server: Server, own_home: dict[str, str]) -> None:
    child = terminal(server.v1, own_home, "--image", str(FIRST), "--temperature", "0")
    child.expect_exact("llava-demo at")
    child.expect_exact("[1 picture] > ")
    said = ask(child, "Describe this image.")
    assert describe([FIRST_GRID]) in said
    assert "(576 of images)" in said
    assert "tokens/s" in said
    ask(child, f"/image {shlex.quote(str(SECOND))}")
    assert child.match.group(2) == "[1 picture] > "
    for line in ("Describe these images.", "/retry"):
        said = ask(child, line)
        assert describe([FIRST_GRID, SECOND_GRID]) in said
        assert "(1152 of images)" in said
    ask(child, "/save chat.json")
    assert "File exists" in ask(child, "/save chat.json")
    quit_chat(child)
    saved = json.loads(Path("chat.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant", "user", "assistant"]
    del saved["messages"][-1]
    again = httpx.post(f"{server.v1}/chat/completions", json=saved, timeout=60).json()
    assert again["choices"][0]["message"]["content"] == describe([FIRST_GRID, SECOND_GRID])


def test_chat_commands_work(server: Server, own_home: dict[str, str]) -> None:
    child = terminal(server.v1, own_home, "--temperature", "0", "--max-tokens", "100")
    wait_for_prompt(child)
    assert "/system TEXT" in ask(child, "/help")
    assert "no question yet" in ask(child, "/retry")
    assert "/help" in ask(child, "/imagine")
    assert "missing.png" in ask(child, "/image missing.png")
    assert "No closing quotation" in ask(child, "/image 'a b.png")
    ask(child, f"/image {shlex.quote(str(FIRST))}")
    assert child.match.group(2) == "[1 picture] > "
    ask(child, "/clear")
    assert child.match.group(2) == "> "
    ask(child, "/system Answer in one word.")
    assert "I see no image." in ask(child, "Describe this image.")
    ask(child, "/save said.json")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    saved = json.loads(Path("said.json").read_text())
    assert saved["messages"][0] == {"role": "system", "content": "Answer in one word."}
    assert (saved["temperature"], saved["max_tokens"]) == (0, 100)


@pytest.mark.parametrize("piped", [True, False])
def test_single_question_prints_only_the_answer(server: Server, own_home: dict[str, str], piped: bool) -> None:
    if piped:
        ended = run(server.v1, own_home, "--image", str(FIRST), "--temperature", "0", question="Describe\nthis image.\n")
    else:
        ended = run(server.v1, own_home, "--image", str(FIRST), "--temperature", "0", "Describe", "this", "image.")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, describe([FIRST_GRID]) + "\n", "")


def test_chat_loads_a_model_itself_and_ends_it(own_home: dict[str, str]) -> None:
    name = f"chat-of-{os.getpid()}"
    arguments = ("--model", MODEL, f"--serve-flags=--served-model-name {name}", "--image", str(FIRST), "--temperature", "0")
    ended = run("", own_home, *arguments, "Describe this image.")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, describe([FIRST_GRID]) + "\n", "")
    assert [process for process in psutil.process_iter(["cmdline"]) if name in (process.info["cmdline"] or ())] == []


def test_server_error_is_printed_in_its_words(server: Server, own_home: dict[str, str]) -> None:
    ended = run(server.v1, own_home, "--model", "no-such", "Hello")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "There is no model 'no-such' here" in ended.stderr
    Path("not.png").write_text("no picture")
    ended = run(server.v1, own_home, "--image", "not.png", "Describe this image.")
    assert ended.returncode == 1
    assert "messages[0].content[0]" in ended.stderr
