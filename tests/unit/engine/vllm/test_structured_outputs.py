"""The processes that check forms: a client that leaves, or a process that ends, does not harm other clients."""

import asyncio
import signal
import tracemalloc
from collections.abc import Coroutine
from typing import Any

import psutil
import pytest
from helpers.processes import own_children

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.structured_outputs import GrammarChecker
from llava_gateway.errors import InvalidRequest, TooManyRequests
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import StructuredOutput

pytestmark = pytest.mark.slow

TOKENIZER = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())
BOMB = 'start: s\ns: s s | "a" | " " | /[a-z]/ | "%d"'


def form(number: int) -> StructuredOutput:
    return StructuredOutput("regex", f"[a-z]{{{number}}}", "structured_outputs.regex")


def workers() -> list[psutil.Process]:
    return own_children("grammar_worker")


def run(work: Any) -> None:
    """Run `work(checker)`, which must leave no process behind."""

    async def main() -> None:
        checker = GrammarChecker(TOKENIZER)
        try:
            await work(checker)
        finally:
            checker.close()
            await asyncio.sleep(0.1)

    asyncio.run(main())
    assert not workers()


def test_bad_form_is_refused_and_good_one_passes() -> None:
    async def work(checker: GrammarChecker) -> None:
        await checker.check(form(1))
        for _ in range(2):  # the second verdict is remembered
            with pytest.raises(InvalidRequest, match="look-around") as refused:
                await checker.check(StructuredOutput("regex", "(?=a)b", "here"))
            assert refused.value.param == "here"
        with pytest.raises(InvalidRequest, match="ambiguous"):
            await checker.check(StructuredOutput("grammar", BOMB % 1))
        await checker.check(form(2))

    run(work)


def test_clients_that_leave_during_the_start_of_a_worker_leave_no_process() -> None:
    async def work(checker: GrammarChecker) -> None:
        for number in range(12):
            task = asyncio.create_task(checker.check(form(number)))
            await asyncio.sleep(0.01 * number)
            task.cancel()
            await asyncio.wait((task,))
        await asyncio.sleep(1)
        assert len(workers()) <= 2
        await checker.check(form(99))

    run(work)


def test_killed_worker_is_replaced() -> None:
    async def work(checker: GrammarChecker) -> None:
        await checker.check(form(1))
        for worker in workers():
            worker.send_signal(signal.SIGKILL)
        await checker.check(form(2))
        for worker in workers():
            worker.send_signal(signal.SIGKILL)
        await asyncio.sleep(0.2)
        await checker.check(form(3))

    run(work)


@pytest.mark.slow
def test_many_expensive_forms_at_once_are_bounded() -> None:
    async def work(checker: GrammarChecker) -> None:
        bombs: list[Coroutine[Any, Any, None]] = [checker.check(StructuredOutput("grammar", BOMB % number)) for number in range(40)]
        ends = await asyncio.gather(*bombs, return_exceptions=True)
        assert {type(end) for end in ends} == {InvalidRequest, TooManyRequests}
        assert sum(isinstance(end, TooManyRequests) for end in ends) == 8
        await checker.check(form(1))

    run(work)


def test_remembered_forms_take_little_memory() -> None:
    """Three hundred regular expressions of emoji once took 219 MB, because the forms themselves were kept."""

    async def work(checker: GrammarChecker) -> None:
        async def refused(number: int) -> None:
            with pytest.raises(InvalidRequest):
                await checker.check(StructuredOutput("regex", f"({number}" + "\N{LLAMA}" * 60_000, "here"))

        await refused(0)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 9):
            await refused(number)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 500_000

    run(work)
