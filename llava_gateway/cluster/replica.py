"""A replica of Ray Serve: a process with one engine, which a supervisor watches."""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import ray

from llava_gateway.cluster.delta_sender import DeltaSender, server_context
from llava_gateway.cluster.metrics import MetricsPage, metrics_page
from llava_gateway.cluster.ray_compat import process_stderr
from llava_gateway.concurrency import cancel_and_wait
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.errors import GatewayError, Unavailable
from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.observability import logging as logs
from llava_gateway.observability.context import RequestContext, request_context
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage

log = logging.getLogger(__name__)


class Replica:
    """The class that Ray Serve deploys, one object for each process. It gets requests after its constructor has returned."""

    async def __init__(self, model: str, flags: Sequence[str], adapters: Sequence[LoraAdapter], settings: Settings) -> None:  # type: ignore[misc]
        """Start the engine. Ray Serve awaits this constructor.

        `flags`: vLLM's own, as on its command line. `adapters`: loaded at the start. Raises EngineStartError.
        """
        logs.set_up(settings, process_stderr())
        create = partial(
            VllmEngine,
            model,
            flags,
            fast_paths=settings.fast_paths == "on",
            video_frames=settings.video_frames,
            memory_check=settings.memory_check == "on",
        )
        self._engine = Supervisor(create, settings.engine_timeout, _exit_process, adapters)
        self._generations: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        """The running requests, by the name of the gateway that has sent them."""
        self._delta_sender = DeltaSender(self._abort)
        self._model = await self._engine.start()
        self._address = await self._delta_sender.start(ray.util.get_node_ip_address(), server_context())

    async def describe(self) -> ModelInfo:
        """Return the description of the model."""
        return self._model

    def record_replica_metadata(self) -> dict[str, Any]:
        """Return the address that gateways connect to. Ray Serve calls this method, and hands the result to all gateways."""
        return asdict(self._address)

    def check_health(self) -> None:
        """Raise Unavailable if the engine is dead. Ray Serve calls this method regularly."""
        self._engine.check()

    async def metrics(self) -> MetricsPage:
        """Return this process's metrics, for the ingress that Prometheus has asked."""
        return metrics_page(gateway=False)

    async def check_structured_output(self, structured_output: StructuredOutput) -> GatewayError | None:
        """Like `Engine.check_structured_output`, but return the error: Ray would wrap a raised one."""
        try:
            await self._engine.check_structured_output(structured_output)
        except GatewayError as error:
            return error
        return None

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, trace: str | None, gateway: str, number: int, **_: object
    ) -> bool:
        """Generate an answer like `Engine.generate`, and send its deltas to a gateway.

        `gateway`: the gateway's name. `number`: the gateway's number for the request. Further keywords are for the router.
        Returns True when the whole answer has been sent, and False if the gateway is not connected or the request was aborted.
        """
        if not await self._delta_sender.wait_until_connected(gateway):
            return False
        usage = Usage()
        self._delta_sender.send(gateway, number, None, usage)  # tells the gateway which replica has the request

        def on_delta(delta: Delta) -> None:
            self._delta_sender.send(gateway, number, delta, usage)

        with request_context(RequestContext(trace=trace)):
            generation = asyncio.create_task(self._engine.generate(prompt, sampling, stream=stream, usage=usage, on_delta=on_delta))
        generations = self._generations[gateway]
        generations.add(generation)
        try:
            await asyncio.wait((generation,))
        finally:
            try:
                await cancel_and_wait(generation)
            finally:
                generations.discard(generation)
                self._delta_sender.send(gateway, number, None, usage, _end(generation))  # an aborted request reports its usage, too
        return not generation.cancelled()

    def _abort(self, gateway: str) -> None:
        """Abort all requests of a gateway."""
        for generation in self._generations.pop(gateway, ()):
            generation.cancel()


def _end(generation: asyncio.Task[None]) -> GatewayError | bool:
    """Return how a request has ended, as in `DeltaMessage`."""
    try:
        if not generation.cancelled():
            generation.result()
    except Unavailable:
        _exit_process()
    except GatewayError as error:
        error.__cause__ = None  # vLLM's error, whose class the gateway may not be able to import
        return error
    return True


def _exit_process() -> None:
    """End this process, because a replica without an engine is of no use.

    Ray Serve then starts another replica, and the gateways send the waiting requests to other ones.
    """
    log.error("The engine is dead, and this replica ends with it")
    logging.shutdown()  # writes the lines that handlers hold
    os._exit(1)
