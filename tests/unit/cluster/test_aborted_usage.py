"""The usage of a request whose client leaves: from the engine over a replica to the gateway, no generated token is lost."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.deltas import SenderReplica, run, until
from ray.serve.exceptions import RequestCancelledError

from llava_gateway.cluster import replica as replicas
from llava_gateway.cluster.delta_receiver import DeltaReceiver
from llava_gateway.cluster.delta_sender import DeltaSender
from llava_gateway.cluster.engine import SHORT_USAGE_TIMEOUT, RayEngine
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.engine.vllm.outputs import OutputSink
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage

pytestmark = pytest.mark.slow


class LocalReplica(replicas.Replica):
    """A replica without Ray, in this process, and the handle that a gateway calls."""

    def __init__(self, engine: Any, sender: DeltaSender) -> None:  # Replica's own constructor is a coroutine
        self._engine = engine
        self._delta_sender = sender
        self._generations = defaultdict(set)

    @property
    def handle(self) -> Any:
        def remote(*args: Any, affinity: str, **kwargs: Any) -> "Response":
            return Response(asyncio.create_task(self.generate(*args, **kwargs)))

        return SimpleNamespace(generate=SimpleNamespace(remote=remote))


class Response:
    """Ray Serve's response. After `cancel` it ends at once, even if the replica still runs."""

    def __init__(self, task: "asyncio.Task[bool]") -> None:
        self._task = task
        self._result = asyncio.shield(task)

    def cancel(self) -> None:
        self._task.cancel()
        self._result.cancel()

    def __await__(self) -> Generator[Any, None, bool]:
        try:
            return (yield from self._result.__await__())
        except asyncio.CancelledError:
            raise RequestCancelledError from None


async def usage_of_aborted_request(replica: SenderReplica, receiver: DeltaReceiver, engine: Any, *, stream: bool) -> Usage:
    """Send a request, cancel it while the engine works, and return its usage."""
    ray_engine, usage = RayEngine(LocalReplica(engine, replica.sender).handle, receiver, lambda: {"a": replica.address}), Usage()
    request = asyncio.create_task(
        ray_engine.generate(Prompt([1], ()), SamplingParams(), stream=stream, usage=usage, on_delta=lambda delta: None)
    )
    await until(lambda: [each for each in receiver._answers.values() if each.replica])
    await engine.working.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    return usage


class SlowEngine:
    """Needs a while to stop, and counts its tokens only then."""

    def __init__(self) -> None:
        self.working = asyncio.Event()

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        self.working.set()
        try:
            await asyncio.Future()
        finally:
            await asyncio.sleep(5 * SHORT_USAGE_TIMEOUT)
            usage.completion_tokens = 7


def test_usage_of_a_replica_that_stops_slowly_is_not_lost() -> None:
    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        usage = await usage_of_aborted_request(replica, receiver, SlowEngine(), stream=False)
        assert usage.completion_tokens == 7

    run(work)


class BusyEngine(VllmEngine):
    """The gateway's own code around vLLM. A pretended vLLM generates a token in each turn of the event loop until it is told to abort."""

    def __init__(self) -> None:
        super().__init__("busy")
        self.working = asyncio.Event()
        self.generated = 0
        self.errored = False
        self.output_processor = SimpleNamespace(external_req_ids={}, request_states={})

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        self._streams = stream
        sink = OutputSink(sampling, None, usage, on_delta, stream=stream, images=False)  # type: ignore[arg-type]
        await self._try_request(self, prompt, sampling, sink)

    async def _add_request(self, engine: object, name: str, *_: object) -> Any:
        self.collector = SimpleNamespace(request_id=name, output=None, put=None)
        self.output_processor.external_req_ids[name] = [name]
        self.output_processor.request_states[name] = SimpleNamespace(
            parent_req=None, detokenizer=SimpleNamespace(num_output_tokens=lambda: self.generated)
        )
        asyncio.get_running_loop().call_soon(self._step)
        return self.collector

    def _step(self) -> None:
        if self.output_processor.request_states:
            self.generated += 1
            if self._streams:
                choice = SimpleNamespace(index=0, text="x", token_ids=[1], finish_reason=None, stop_reason=None)
                self.collector.put(SimpleNamespace(outputs=[choice], num_cached_tokens=0, finished=False))
            asyncio.get_running_loop().call_soon(self._step)
            if self.generated > 10:
                self.working.set()

    async def abort(self, name: str, *, internal: bool) -> None:
        self.output_processor.request_states.clear()


@pytest.mark.parametrize("stream", [True, False])
def test_token_of_the_turn_of_the_cancellation_is_counted(stream: bool) -> None:
    """vLLM may deliver a token between the cancellation of the request's task and the moment when the task notices."""

    async def work(replica: SenderReplica, receiver: DeltaReceiver) -> None:
        engine = BusyEngine()
        usage = await usage_of_aborted_request(replica, receiver, engine, stream=stream)
        assert usage.completion_tokens == engine.generated > 10

    run(work)
