"""Memory of answers that are being made. Log probabilities make an answer a hundred times as large as its text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llava_gateway.errors import InvalidRequest, TooManyRequests
from llava_gateway.observability import metrics
from llava_gateway.settings import Settings


class AnswerMemory:
    """Counts the bytes that answers may come to, and bounds their sum."""

    def __init__(self, settings: Settings) -> None:
        self.max_bytes = settings.max_answers_mb << 20
        self.bytes = 0
        metrics.ANSWER_BYTES.set_function(lambda: self.bytes)

    def check(self, size: int) -> None:
        """Raise InvalidRequest for an answer of at most `size` bytes that never has room."""
        if size > self.max_bytes:
            raise InvalidRequest(
                f"The answer may take more than {self.max_bytes >> 20} MiB of memory; ask for fewer tokens, choices or log probabilities.",
                param="max_tokens",
            )

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Room for an answer of at most `size` bytes, until the block ends. Raises InvalidRequest for an answer that never has room, and
        TooManyRequests while other answers take the room."""
        self.check(size)
        if self.bytes + size > self.max_bytes:
            raise TooManyRequests("The server is busy with large answers. Try again later.", code="answers_full", retry_after=1)
        with self._counted(size):
            yield

    @contextmanager
    def waiting(self, parts: Sequence[bytes | bytearray]) -> Iterator[None]:
        """An answer that is made, and leaves as fast as its client reads."""
        with self._counted(sum(map(len, parts))):
            yield

    @contextmanager
    def _counted(self, size: int) -> Iterator[None]:
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size
