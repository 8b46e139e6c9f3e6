"""Memory of answers: counted while they are made, bounded together."""

import pytest

from llava_gateway.errors import InvalidRequest, TooManyRequests
from llava_gateway.observability import metrics
from llava_gateway.serving.answer_memory import AnswerMemory
from llava_gateway.settings import Settings

MB = 1 << 20


def test_answer_without_room_is_refused_until_another_ends() -> None:
    memory = AnswerMemory(Settings(max_answers_mb=10))
    with memory.reserved(6 * MB):
        with pytest.raises(TooManyRequests) as refused, memory.reserved(5 * MB):
            pass
        assert refused.value.code == "answers_full"
        assert refused.value.retry_after
        with memory.reserved(4 * MB):
            assert next(iter(metrics.ANSWER_BYTES.collect())).samples[0].value == 10 * MB
    with memory.reserved(10 * MB):
        pass
    assert memory.bytes == 0


def test_answer_that_can_never_fit_is_a_400() -> None:
    memory = AnswerMemory(Settings(max_answers_mb=1))
    with pytest.raises(InvalidRequest, match="log probabilities"), memory.reserved(MB + 1):
        pass
    assert memory.bytes == 0


def test_failed_request_releases_its_memory() -> None:
    memory = AnswerMemory(Settings(max_answers_mb=1))
    with pytest.raises(ZeroDivisionError), memory.reserved(MB):
        raise ZeroDivisionError
    assert memory.bytes == 0
