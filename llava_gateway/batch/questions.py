"""Questions and answers in the files of LLaVA's evaluation (llava/eval/model_vqa.py), instead of OpenAI's batch format.

A question is a line `{"question_id": 1, "image": "cat.jpg", "text": "What is this?"}`. Its answer is a line `{"question_id": 1,
"prompt": "What is this?", "text": "A cat.", "answer_id": ..., "model_id": ..., "metadata": {}}`. The answers have the order of the
questions, because LLaVA's evaluations read both files side by side. A question that fails has no answer.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict

from llava_gateway.batch.lines import CHAT, BatchError, InvalidLine, RequestFile, RequestLine, digest
from llava_gateway.batch.output import OutputFile, WrittenLine

DEFAULTS = {"temperature": 0.2, "max_tokens": 1024}
"""The parameters of model_vqa.py."""
ANSWER_ID = re.compile(r"([1-9][0-9]{0,17})-[0-9a-f]{32}")
"""The id of an answer: the number of the question's line, and a digest of the request."""


class _Question(BaseModel):
    """A question of model_vqa.py. Other fields, such as `category`, are ignored."""

    model_config = ConfigDict(strict=True)
    question_id: int | str
    image: str | None = None
    text: str


@dataclass(frozen=True, slots=True)
class QuestionLine(RequestLine):
    """The request of a question."""

    question_id: int | str
    prompt: str
    """The text of the question."""


class QuestionFile(RequestFile):
    """A file of questions. Several questions may have the same `question_id`, so their lines identify them."""

    def __init__(self, path: Path, image_folder: Path, fields: Mapping[str, Any]) -> None:
        """`image_folder`: the folder of the images. `fields`: added to every body. Raises BatchError as RequestFile does."""
        super().__init__(path)
        self.folder = image_folder
        self._fields = fields

    def request(self, number: int, value: Any) -> RequestLine:
        """Return the request of a line. Raises pydantic's ValidationError, and orjson.JSONEncodeError."""
        question = _Question.model_validate(value)
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        if question.image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": question.image}})
        body = {"messages": [{"role": "user", "content": content}], **self._fields}
        return QuestionLine(number, _key(number), CHAT, body, f"{number}-{digest(CHAT, body)}", question.question_id, question.text)


class AnswersFile(OutputFile):
    """A file of answers. A question that fails gets no line, so the next run sends it again."""

    beginning: ClassVar = b'{"question_id":'

    def append(self, line: RequestLine, entry: dict[str, Any]) -> None:
        """Write the answer to a question, unless it has failed. Raises BatchError."""
        if entry["error"]:
            return
        assert isinstance(line, QuestionLine)
        body = entry["response"]["body"]
        try:
            text, model = body["choices"][0]["message"]["content"] or "", body.get("model", "")
            answer = {"question_id": line.question_id, "prompt": line.prompt, "text": text.strip()}
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise BatchError(f"{line.custom_id}: the server's answer is not a chat completion") from error
        self.write(answer | {"answer_id": line.id, "model_id": model, "metadata": {}})

    def append_error(self, line: InvalidLine) -> None:
        """Write nothing: an invalid line has no answer."""

    def finish(self) -> None:
        """Put the answers into the order of the questions. Raises BatchError."""
        positions: list[tuple[int, int, int]] = []
        offset = 0
        with self.path.open("rb") as file:
            for text in file:
                if found := _answer_id(text):
                    positions.append((int(found[1]), offset, len(text)))
                offset += len(text)
        if positions != (in_order := sorted(positions)):
            self.replace(self._read_lines((offset, length) for _, offset, length in in_order))

    def parse(self, text: bytes) -> WrittenLine | None:
        """Return an answer that an earlier run has written. None for any other line."""
        found = _answer_id(text)
        return WrittenLine(_key(int(found[1])), found[0], failed=False) if found else None

    def _read_lines(self, positions: Iterator[tuple[int, int]]) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for offset, length in positions:
                file.seek(offset)
                yield file.read(length)


def _key(number: int) -> str:
    return f"line {number}"


def _answer_id(text: bytes) -> re.Match[str] | None:
    """Return the match of ANSWER_ID in a line of answers. None: `append` has not written this line."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    answer_id = value.get("answer_id") if isinstance(value, dict) else None
    return ANSWER_ID.fullmatch(answer_id) if isinstance(answer_id, str) else None
