"""An engine that is somewhere else: replicas of a deployment of Ray Serve, each with an engine of its own."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llava_gateway.cluster.delta_receiver import DeltaReceiver, Expected, ReplicaLost
from llava_gateway.cluster.delta_sender import Address
from llava_gateway.errors import EngineFailed, GatewayError, InvalidRequest, TooManyRequests
from llava_gateway.observability.context import current_context
from llava_gateway.types import Delta, LoraAdapter, ModelInfo, Prompt, SamplingParams, StructuredOutput, Usage

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Replicas that a request is given to, one after the other, while they die without having said anything."""
PAUSE = 1.0
"""Seconds after which the model is asked for again."""
LOOK_INTERVAL = 0.5
"""Seconds after which a request that nobody answers yet looks for replicas that have come or gone."""
LAST_WORD = 2
"""Seconds that a replica gets to say what a request that was given up has used."""
ON_ITS_WAY = 10
"""Seconds that the end of an answer may take to come in once the replica has sent it."""


class RayEngine:
    """All replicas of one model. Ray Serve starts and ends them, and keeps them well; this only asks them."""

    stage = "waiting for a replica"

    def __init__(
        self,
        handle: "DeploymentHandle[Any]",
        delta_receiver: DeltaReceiver,
        replicas: Callable[[], Mapping[str, Address]],
        adapters: tuple[LoraAdapter, ...] = (),
    ) -> None:
        """`replicas`: those that take requests, as far as is known here. `adapters`: what every replica loads when it starts."""
        self._handle = handle
        self._delta_receiver = delta_receiver
        self._replicas = replicas
        self._adapters = adapters
        self._started = False

    @property
    def dead(self) -> bool:
        return self._started and not self._replicas()

    async def start(self) -> ModelInfo:
        """Returns when a replica has loaded the model, however long that takes."""
        while True:
            try:
                model: ModelInfo = await _result(self._handle.describe.remote())
            except GatewayError as error:  # that replica died, and there will be others
                log.warning("a replica did not describe its model: %s", error.message)
                await asyncio.sleep(PAUSE)
            else:
                self._started = True
                return model

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                error: GatewayError | None = await _result(self._handle.check_structured_output.remote(structured_output))
            except ReplicaLost:
                if attempt == ATTEMPTS:
                    raise
            else:
                break
        if error:
            raise error

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        """Every replica loads its adapters when it starts; those of a running cluster do not change."""
        if adapter not in self._adapters:
            raise InvalidRequest("The adapters of a cluster stand in its configuration.", param="lora_name")

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        """What `load_adapter` has taken, stays."""

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
    ) -> None:
        """As the protocol has it; a request whose replica dies before the first delta is given to another one."""
        for attempt in range(1, ATTEMPTS + 1):
            number, answer = self._delta_receiver.expect(usage, on_delta)
            try:
                await self._ask(number, answer, prompt, sampling, stream)
            except ReplicaLost:
                if answer.begun or attempt == ATTEMPTS:
                    raise
                log.warning("a replica was lost before it answered; another one is asked")
            else:
                return
            finally:
                self._delta_receiver.forget(number)

    async def _ask(self, number: int, answer: Expected, prompt: Prompt, sampling: SamplingParams, stream: bool) -> None:
        self._listen()
        affinity = prompt.images[0].digest if prompt.images else ""
        trace, gateway = current_context().trace, self._delta_receiver.name
        response = self._handle.generate.remote(
            prompt, sampling, stream=stream, trace=trace, affinity=affinity, gateway=gateway, number=number
        )
        asking = asyncio.create_task(_result(response))
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # has been seen, should nobody wait for it
        try:
            await self._first_of(asking, answer)
            if not answer.end.done():
                if not await asking:
                    raise ReplicaLost
                async with asyncio.timeout(ON_ITS_WAY):
                    await asyncio.shield(answer.end)
            answer.end.result()
        except TimeoutError:
            raise ReplicaLost from None
        finally:
            if not answer.is_whole:
                response.cancel()
                await _last_word(asking, answer)

    async def _first_of(self, asking: asyncio.Task[bool], answer: Expected) -> None:
        """Returns when either has ended. Until the answer has begun the request may wait for a replica. Raises Lost if none is left."""
        while not (asking.done() or answer.end.done()):
            timeout = None if answer.begun else LOOK_INTERVAL
            await asyncio.wait((asking, answer.end), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not answer.begun:
                self._listen()

    def _listen(self) -> None:
        """To all replicas that take requests. Raises Lost if there is none."""
        replicas = self._replicas()
        self._delta_receiver.listen(replicas)
        if not replicas:
            raise ReplicaLost("No replica of this model is running.")

    async def check(self, timeout: float) -> None:
        if not self._replicas():
            raise ReplicaLost("No replica of this model is running.")

    async def stop(self) -> None:
        """The replicas are Ray Serve's, and other gateways'."""


async def _last_word(asking: asyncio.Task[bool], answer: Expected) -> None:
    """Wait until the replica that had to give a request up has said what it has used. The message comes another way than Ray's answer."""
    await asyncio.wait((asking, answer.end), timeout=LAST_WORD, return_when=asyncio.FIRST_COMPLETED)
    if not answer.end.done():
        await asyncio.wait((answer.end,), timeout=LAST_WORD / 10)


async def _result(response: "DeploymentResponse[Any]") -> Any:
    with _failures():
        return await response


@contextmanager
def _failures() -> Iterator[None]:
    """Ray's errors as ours."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    try:
        yield
    except BackPressureError as error:
        raise TooManyRequests("The engines are busy. Try again later.", code="queue_full", retry_after=1) from error
    except RayTaskError as error:
        raise EngineFailed("The engine could not process this request.") from error
    except (RayError, RayServeException) as error:
        raise ReplicaLost from error
