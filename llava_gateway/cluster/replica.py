"""One engine in a replica of Ray Serve, which starts it, asks whether it is well, and puts another one in its place."""

import asyncio
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import ray

from llava_gateway.cluster.delta_sender import DeltaSender, server_context
from llava_gateway.cluster.metrics import Page, page
from llava_gateway.concurrency import cancel_and_wait
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.engine.vllm.engine import VllmEngine
from llava_gateway.errors import GatewayError, Unavailable
from llava_gateway.observability import logging as logs
from llava_gateway.observability.context import RequestContext, request_context
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, LoraAdapter, ModelInfo, Prompt, SamplingParams, StructuredOutput, Usage

log = logging.getLogger(__name__)


class Replica:
    """One for each process. Ray Serve awaits its constructor, and sends it requests once that has returned."""

    async def __init__(self, model: str, flags: Sequence[str], adapters: Sequence[LoraAdapter], settings: Settings) -> None:  # type: ignore[misc]
        """`flags` are vLLM's own. Raises EngineStartError."""
        logs.set_up(settings, sys.__stderr__)  # what Ray Serve has for sys.stderr keeps lines back
        self._engine = Supervisor(partial(VllmEngine, model, flags), settings.engine_timeout, _die, adapters)
        self._working: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._delta_sender = DeltaSender(self._abort)
        self._model = await self._engine.start()
        self._address = await self._delta_sender.start(ray.util.get_node_ip_address(), server_context())

    async def describe(self) -> ModelInfo:
        return self._model

    def record_replica_metadata(self) -> dict[str, Any]:
        """Called by Ray Serve, which tells all gateways: where they get their deltas."""
        return asdict(self._address)

    def check_health(self) -> None:
        """Called by Ray Serve now and then. Raises Unavailable."""
        self._engine.check()

    async def metrics(self) -> Page:
        """For an ingress that is asked for them."""
        return page(ours=False)

    async def check_structured_output(self, structured_output: StructuredOutput) -> GatewayError | None:
        """As the engine's; what it would raise is returned."""
        try:
            await self._engine.check_structured_output(structured_output)
        except GatewayError as error:
            return error
        return None

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, trace: str | None, gateway: str, number: int, **_: object
    ) -> bool:
        """As the engine's; the answer goes to this gateway, under this number of the request. Returns whether all of it is on its way; not
        so if nobody reads it. More keywords are for the router."""
        if not await self._delta_sender.reach(gateway):
            return False
        usage = Usage()

        def on_delta(delta: Delta) -> None:
            self._delta_sender.put(gateway, number, delta, usage)

        with request_context(RequestContext(trace=trace)):
            work = asyncio.create_task(self._engine.generate(prompt, sampling, stream=stream, usage=usage, on_delta=on_delta))
        working = self._working[gateway]
        working.add(work)
        try:
            await asyncio.wait((work,))
        finally:
            try:
                await cancel_and_wait(work)
            finally:
                working.discard(work)
                self._delta_sender.put(gateway, number, None, usage, _end(work))  # also of one that was given up: what it has used
        return not work.cancelled()

    def _abort(self, gateway: str) -> None:
        for work in self._working.pop(gateway, ()):
            work.cancel()


def _end(work: asyncio.Task[None]) -> GatewayError | bool:
    try:
        if not work.cancelled():
            work.result()
    except Unavailable:
        _die()
    except GatewayError as error:
        error.__cause__ = None  # vLLM's own, which whoever reads this need not be able to unpickle
        return error
    return True


def _die() -> None:
    """Without its engine the replica is of no use. As soon as its process has ended Ray Serve starts another one, and those who wait for
    an answer ask elsewhere."""
    log.error("The engine is dead, and this replica ends with it")
    logging.shutdown()  # which writes what handlers hold
    os._exit(1)
