"""What has been said so far, and what is sent with the next question."""

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

import httpx

from llava_gateway.cli.chat_stream import Answer, stream_answer

Message = dict[str, Any]
"""As the OpenAI API has it."""


@dataclass
class Conversation:
    """With one model of one server. Answers go to standard output as they come."""

    client: httpx.AsyncClient
    runner: asyncio.Runner
    fields: dict[str, Any]
    """Of every request: the model, and how it samples."""
    system: str = ""
    pictures: list[Message] = field(default_factory=list)
    """Parts that go with the next question."""
    turns: list[Message] = field(default_factory=list)
    asked: Message | None = None
    """The last question, whether or not it has an answer."""

    def messages(self) -> list[Message]:
        return [{"role": "system", "content": self.system}, *self.turns] if self.system else list(self.turns)

    @property
    def answered(self) -> bool:
        """Whether the last question has an answer, or the beginning of one."""
        return len(self.turns) > 1 and self.turns[-2] is self.asked

    def ask(self, question: str) -> Answer:
        """As `retry`, of a new question with the pictures that wait for it."""
        content = [*self.pictures, {"type": "text", "text": question}] if self.pictures else question
        self.asked, self.pictures = {"role": "user", "content": content}, []
        return self._answer(self.asked)

    def retry(self) -> Answer | None:
        """Ask the last question again, in place of its answer; None if there is none. Raises ChatError, and KeyboardInterrupt if the user
        stops the answer: one that has begun is kept as far as it came, else the question is taken out."""
        if self.asked is None:
            return None
        if self.answered:
            del self.turns[-2:]
        return self._answer(self.asked)

    def clear(self) -> None:
        """Forget all but the system message."""
        self.turns, self.pictures, self.asked = [], [], None

    def _answer(self, question: Message) -> Answer:
        answer = Answer()
        body = {**self.fields, "messages": [*self.messages(), question], "stream": True, "stream_options": {"include_usage": True}}
        try:
            self.runner.run(stream_answer(self.client, body, answer, _write))
        finally:
            if answer.text:
                self.turns += [question, {"role": "assistant", "content": answer.text}]
                _write("" if answer.text.endswith("\n") else "\n")
        return answer


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
