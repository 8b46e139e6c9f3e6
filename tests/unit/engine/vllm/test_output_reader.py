"""The engine's messages, read from a real socket: their order, long ones, answers to questions, and every kind of end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
import zmq.asyncio
from helpers.engine_outputs import FINISHED, add_request, params, tokenizer
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, UtilityOutput
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from llava_gateway.engine.vllm.compat.output_reader import OutputReader, why_unsupported
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


class Engine:
    """The engine's side of the socket, and vLLM's front end around the reader."""

    def __init__(self, socket: zmq.Socket[bytes], front_end: Any, reader: OutputReader) -> None:
        self._socket = socket
        self.front_end = front_end
        self.reader = reader
        self.received: dict[str, list[Any]] = {}
        self.recorded: list[dict[str, Any]] = []

    def add(self, *names: str, stream: bool = True) -> None:
        for name in names:
            self.received[name] = []
            add_request(self.front_end.output_processor, name, self.received[name], params())
            if stream:
                on_text = self.received[name]
                collector: Any = SimpleNamespace(request_id=name)
                self.reader.stream_text(collector, lambda text, tokens, on_text=on_text: on_text.append(text))  # type: ignore[misc]

    def send(self, *outputs: EngineCoreOutput, **fields: Any) -> None:
        self._socket.send_multipart(MsgpackEncoder().encode(EngineCoreOutputs(outputs=list(outputs), timestamp=1.0, **fields)))

    def send_raw(self, message: bytes) -> None:
        self._socket.send(message)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 # the reader has no event of its own
                await asyncio.sleep(0.001)


def _sender(context: zmq.asyncio.Context) -> Any:
    return zmq.Context.shadow(context.underlying).socket(zmq.PUSH)


@asynccontextmanager
async def running(chunk_size: int = 32) -> AsyncIterator[Engine]:
    with zmq.asyncio.Context() as context, context.socket(zmq.PULL) as pull, _sender(context) as push:
        pull.bind("inproc://outputs")
        push.connect("inproc://outputs")
        resources = SimpleNamespace(output_socket=pull, output_queue_task=None, engine_dead=False)
        core = SimpleNamespace(resources=resources, decoder=MsgpackDecoder(EngineCoreOutputs), utility_results={})
        core.aborted = []

        async def abort(names: list[str]) -> None:
            core.aborted += names

        core.abort_requests_async = abort
        front_end: Any = SimpleNamespace(
            engine_core=core,
            output_handler=None,
            log_stats=True,
            logger_manager=None,
            renderer=SimpleNamespace(mm_processor_cache=None, stat_mm_cache=lambda: None),
            output_processor=OutputProcessor(tokenizer(), log_stats=True),
        )
        reader = OutputReader(front_end, Tokenizer(tokenizer().backend_tokenizer.to_str()).token_texts())
        reader._chunk_size = chunk_size
        engine = Engine(push, front_end, reader)
        front_end.logger_manager = reader._logger = SimpleNamespace(record=lambda **stats: engine.recorded.append(stats))
        try:
            yield engine
        finally:
            front_end.output_handler.cancel()
            await asyncio.wait((front_end.output_handler,))


def run(test: Callable[[Engine], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with running(**options) as engine:
            await test(engine)

    asyncio.run(main())


def ended(engine: Engine, name: str) -> bool:
    return bool(engine.received[name]) and getattr(engine.received[name][-1], "finished", False)


def test_text_comes_in_order_and_statistics_once_a_step() -> None:
    async def test(engine: Engine) -> None:
        engine.add("a", "b")
        for token in (300, 301, 302):
            engine.send(*(EngineCoreOutput(name, [token]) for name in "ab"))
        engine.send(*(EngineCoreOutput(name, [303], finish_reason=FINISHED) for name in "ab"))
        await engine.until(lambda: ended(engine, "a") and ended(engine, "b"))
        texts = [engine.reader._processor._texts[token] for token in (300, 301, 302, 303)]
        for name in "ab":
            assert [each if isinstance(each, str) else each.outputs[0].text for each in engine.received[name]] == texts
        assert [step["iteration_stats"].num_generation_tokens for step in engine.recorded] == [2, 2, 2, 2]

    run(test)


def test_long_step_lets_others_run_and_no_later_message_overtakes_it() -> None:
    async def test(engine: Engine) -> None:
        names = [f"r{number}" for number in range(7)]
        engine.add(*names)
        turns = 0

        def count() -> None:
            nonlocal turns
            turns += 1
            if not ended(engine, names[-1]):
                asyncio.get_running_loop().call_soon(count)

        engine.send(*(EngineCoreOutput(name, [300]) for name in names))
        engine.send(*(EngineCoreOutput(name, [301]) for name in names))
        engine.send(*(EngineCoreOutput(name, [302], finish_reason=FINISHED) for name in names))
        count()
        await engine.until(lambda: all(ended(engine, name) for name in names))
        assert turns > 6, "the event loop stood still"
        texts = [engine.reader._processor._texts[token] for token in (300, 301, 302)]
        for name in names:
            assert [each if isinstance(each, str) else each.outputs[0].text for each in engine.received[name]] == texts
        assert len(engine.recorded) == 3

    run(test, chunk_size=2)


def test_answer_to_a_question_reaches_its_future() -> None:
    async def test(engine: Engine) -> None:
        answer = asyncio.get_running_loop().create_future()
        engine.front_end.engine_core.utility_results[7] = answer
        engine.send(utility_output=UtilityOutput(7, None, UtilityResult("yes")))
        assert await asyncio.wait_for(answer, 30) == "yes"

    run(test)


def test_engine_that_announces_its_death_ends_all_requests() -> None:
    async def test(engine: Engine) -> None:
        engine.add("a", "b")
        engine.send(EngineCoreOutput("a", [300]))
        engine.send_raw(EngineCoreProc.ENGINE_CORE_DEAD)
        await engine.until(lambda: engine.front_end.output_handler.done())
        assert isinstance(engine.received["a"][-1], EngineDeadError)
        assert isinstance(engine.received["b"][-1], EngineDeadError)
        assert engine.front_end.engine_core.resources.engine_dead

    run(test)


def test_cancelled_reader_ends_all_requests() -> None:
    """vLLM cancels its tasks when it sees that the engine's process has ended."""

    async def test(engine: Engine) -> None:
        engine.add("a")
        await asyncio.sleep(0)  # the task has started
        engine.front_end.output_handler.cancel()
        await engine.until(lambda: engine.front_end.output_handler.done())
        assert isinstance(engine.received["a"][-1], EngineDeadError)

    run(test)


def test_message_that_cannot_be_read_ends_all_requests_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async def test(engine: Engine) -> None:
        engine.add("a")
        engine.send_raw(b"\xc1")
        await engine.until(lambda: engine.front_end.output_handler.done())
        assert type(engine.received["a"][-1]).__module__.startswith("msgspec")

    run(test)
    assert "can no longer be read" in caplog.text


def front_end(**changes: Any) -> Any:
    """A front end for which our way is supported, but for the changes."""
    core = AsyncMPClient.__new__(AsyncMPClient)
    core.resources = SimpleNamespace(output_queue_task=None)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(enable_fault_tolerance=changes.get("fault_tolerance", False)),
        kv_transfer_config=changes.get("kv_transfer"),
        ec_transfer_config=None,
        aux_output_config=SimpleNamespace(enabled=changes.get("routed_experts", False)),
    )
    processor = SimpleNamespace(stream_interval=changes.get("stream_interval", 1), tokenizer=changes.get("tokenizer", tokenizer()))
    return SimpleNamespace(
        vllm_config=config, engine_core=changes.get("core", core), output_handler=changes.get("handler"), output_processor=processor
    )


def test_engine_on_its_own_process_is_supported() -> None:
    assert why_unsupported(front_end()) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"core": SimpleNamespace()}, "several processes"),
        ({"handler": object()}, "has begun"),
        ({"tokenizer": object()}, "in Python"),
        ({"stream_interval": 4}, "stream interval"),
        ({"fault_tolerance": True}, "fault tolerance"),
        ({"kv_transfer": object()}, "KV caches"),
        ({"routed_experts": True}, "routed experts"),
    ],
)
def test_engine_with_other_outputs_keeps_vllms_way(changes: dict[str, Any], why: str) -> None:
    assert why in str(why_unsupported(front_end(**changes)))


def test_unknown_version_of_vllm_keeps_vllms_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.99.0")
    assert "not tested with vLLM 0.99.0" in str(why_unsupported(front_end()))


def test_tokenizer_whose_texts_cannot_be_read_keeps_vllms_way() -> None:
    unreadable = Tokenizer('{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"b":0},"merges":[]},"decoder":null}')
    info: Any = SimpleNamespace(tokenizer=unreadable)
    reason = asyncio.run(VllmEngine("model")._make_output_reader(front_end(), info))
    assert "cannot be read" in str(reason)
