"""`llava-gateway batch` with the files of LLaVA's model_vqa.py: questions, and answers in their order."""

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_server import Handle, answer, faulty_server

from llava_gateway.cli.batch import main
from llava_gateway.demo.images import data_uri, draw, encode

UNREACHABLE = "http://127.0.0.1:9"
PICTURE = encode(draw(("red", "blue", "green", "white")))
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": "a/1.png", "image": "1.png", "text": "Is it red?", "category": "color"},
    {"question_id": "a/1.png", "image": "1.png", "text": "Is it blue?", "category": "color"},
    {"question_id": 7, "text": "What is your name?"},
]
"""MME has several questions under one `question_id`, and LLaVA's qa90 has questions without an image."""


def write(folder: Path, questions: list[Any]) -> tuple[Path, Path, str, Path]:
    """Write a file of questions and its images. Return the arguments of the command."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "1.png").write_bytes(PICTURE)
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    return path, folder / "answers.jsonl", "--image-folder", folder / "images"


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--patience", "0"])


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "answers.jsonl").read_text().splitlines()]


def text_of(asked: dict[str, Any]) -> str:
    """Return the text of a request's question."""
    return str(asked["messages"][0]["content"][-1]["text"])


def echo(sent: list[dict[str, Any]], before: Handle = lambda handler: None) -> Handle:
    """Return a handler that answers a question with its own text, and keeps the request. `before`: is called first."""

    def handle(handler: http.server.BaseHTTPRequestHandler) -> None:
        sent.append(json.loads(handler.asked))  # type: ignore[attr-defined]
        before(handler)
        said = f" {text_of(sent[-1])}\n"
        answer(200, {"model": "llava-demo", "choices": [{"message": {"content": said}}]})(handler)

    return handle


def test_answers_have_the_fields_of_model_vqa(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []
    with faulty_server(echo(sent)) as url:
        assert run(*write(tmp_path, QUESTIONS), "--base-url", url) == 0
    found = answers(tmp_path)
    assert [list(each) for each in found] == [["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]] * 3
    for question, each in zip(QUESTIONS, found, strict=True):
        assert each["question_id"] == question["question_id"]
        assert each["prompt"] == each["text"] == question["text"]
        assert (each["model_id"], each["metadata"]) == ("llava-demo", {})
    assert len({each["answer_id"] for each in found}) == 3


def test_request_is_that_of_model_vqa(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []
    with faulty_server(echo(sent)) as url:
        assert run(*write(tmp_path, QUESTIONS[:1]), "--base-url", url) == 0
        (tmp_path / "answers.jsonl").unlink()
        assert run(*write(tmp_path, QUESTIONS[2:]), "--base-url", url, "--temperature", "0", "--max-tokens", "5") == 0
    with_image, without = sent
    assert [part["type"] for part in with_image["messages"][0]["content"]] == ["image_url", "text"], "the image comes first"
    assert with_image["messages"][0]["content"][0]["image_url"]["url"] == data_uri(PICTURE)
    assert (with_image["temperature"], with_image["max_tokens"]) == (0.2, 1024)
    assert (without["temperature"], without["max_tokens"]) == (0, 5)


def test_answers_have_the_order_of_the_questions(tmp_path: Path) -> None:
    """LLaVA's evaluations read both files side by side."""
    questions = [{"question_id": number, "text": f"Question {number}"} for number in range(12)]
    last_is_answered = threading.Event()
    sent: list[dict[str, Any]] = []

    def wait(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = text_of(json.loads(handler.asked))  # type: ignore[attr-defined]
        if asked == "Question 0":
            assert last_is_answered.wait(30)
        elif asked == "Question 11":
            last_is_answered.set()

    with faulty_server(echo(sent, wait)) as url:
        assert run(*write(tmp_path, questions), "--base-url", url, "--concurrency", "2") == 0
    assert [each["question_id"] for each in answers(tmp_path)] == list(range(12))
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_failed_question_has_no_answer_and_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = {"question_id": 1, "image": "missing.png", "text": "What is it?"}
    questions = [missing, {"question_id": 2, "text": 5}, "{", *QUESTIONS]
    sent: list[dict[str, Any]] = []
    with faulty_server(echo(sent)) as url:
        command = (*write(tmp_path, questions), "--base-url", url)
        assert run(*command) == 1
        said = capsys.readouterr().out
        assert "1 failed with picture_unreadable, first line 1: missing.png" in said
        assert "2 lines of" in said
        assert "line 2: text" in said
        assert [each["prompt"] for each in answers(tmp_path)] == [question["text"] for question in QUESTIONS]
        shutil.copy(tmp_path / "images" / "1.png", tmp_path / "images" / "missing.png")
        assert run(*command) == 1
        assert len(sent) == 4
        assert [each["prompt"] for each in answers(tmp_path)] == ["What is it?", *(question["text"] for question in QUESTIONS)]


def test_interrupted_run_goes_on_with_the_questions_that_have_no_answer(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []
    with faulty_server(echo(sent)) as url:
        command = (*write(tmp_path, QUESTIONS), "--base-url", url)
        assert run(*command) == 0
        out = tmp_path / "answers.jsonl"
        whole = out.read_bytes()
        first, second, third = whole.splitlines(keepends=True)
        out.write_bytes(third + first + second[:-9])
        assert run(*command) == 0
        assert out.read_bytes() == whole
        out.write_bytes(third + first + second)
        assert run(*command) == 0, "a run that was killed before it had put the answers in order"
        assert out.read_bytes() == whole
    assert len(sent) == 4


@pytest.mark.parametrize("line", [b"Dear diary\n", b'{"question_id": 1, "text": "of another program", "answer_id": "x"}\n'])
def test_file_of_another_program_is_not_overwritten(tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    command = write(tmp_path, QUESTIONS)
    (tmp_path / "answers.jsonl").write_bytes(line)
    assert run(*command, "--base-url", UNREACHABLE) == 2
    assert "answers.jsonl, line 1" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_bytes() == line


def test_other_question_on_the_same_line_needs_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with faulty_server(echo([])) as url:
        assert run(*write(tmp_path, QUESTIONS), "--base-url", url) == 0
        assert run(*write(tmp_path, QUESTIONS[1:]), "--base-url", url) == 2
    assert "asked something else before" in capsys.readouterr().err


def test_answer_that_is_not_a_chat_completion_ends_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with faulty_server(answer(200, {"choices": []})) as url:
        assert run(*write(tmp_path, QUESTIONS), "--base-url", url) == 2
    assert "not a chat completion" in capsys.readouterr().err


def test_folder_of_images_takes_no_file_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "out", "--images", "*.png", "--prompt", "What?", "--image-folder", tmp_path, "--base-url", UNREACHABLE)
    assert "--image-folder" in capsys.readouterr().err
