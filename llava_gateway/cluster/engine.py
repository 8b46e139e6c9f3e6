"""The engine of a gateway on a cluster: it sends requests to the replicas of a Ray Serve deployment."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llava_gateway.cluster.delta_receiver import DeltaReceiver, PendingAnswer, ReplicaLost
from llava_gateway.cluster.delta_sender import Address
from llava_gateway.errors import EngineFailed, GatewayError, InvalidRequest, TooManyRequests
from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.observability.context import current_context
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Replicas that a request is sent to, one after the other, if they die before their first delta."""
DESCRIBE_INTERVAL = 1.0
"""Seconds between two attempts to get the model's description at the start."""
RECONNECT_INTERVAL = 0.5
"""Seconds between two looks for new replicas, while a request has no delta yet."""
USAGE_TIMEOUT = 10
"""Seconds that a replica has to report the usage of a request whose client has left. Its process may have to wait for a core."""
SHORT_USAGE_TIMEOUT = 0.2
"""The same, if the replica may not have the request or has failed: only a report that is already sent arrives then."""
END_TIMEOUT = 10
"""Seconds that the end of an answer may take to arrive after the replica has sent it."""


class RayEngine:
    """All replicas of one model. Implements `engine.base.Engine`. Ray Serve starts, watches and ends the replicas."""

    stage = "waiting for a replica"

    def __init__(
        self,
        handle: "DeploymentHandle[Any]",
        delta_receiver: DeltaReceiver,
        replicas: Callable[[], Mapping[str, Address]],
        adapters: tuple[LoraAdapter, ...] = (),
    ) -> None:
        """`handle`: of the deployment of `Replica`.

        `replicas`: returns the replicas that accept requests, as far as this process knows.
        `adapters`: the LoRA adapters that every replica loads when it starts.
        """
        self._handle = handle
        self._delta_receiver = delta_receiver
        self._replicas = replicas
        self._adapters = adapters
        self._started = False

    @property
    def dead(self) -> bool:
        return self._started and not self._replicas()

    async def start(self) -> ModelInfo:
        """Return the model's description when a replica has loaded the model, however long that takes."""
        while True:
            try:
                model: ModelInfo = await _result(self._handle.describe.remote())
            except GatewayError as error:  # this replica has died; Ray Serve starts another one
                log.warning("a replica did not describe its model: %s", error.message)
                await asyncio.sleep(DESCRIBE_INTERVAL)
            else:
                self._started = True
                return model

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                error: GatewayError | None = await _result(self._handle.check_structured_output.remote(structured_output))
            except ReplicaLost:
                if attempt == MAX_ATTEMPTS:
                    raise
            else:
                break
        if error:
            raise error

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        """Raise InvalidRequest unless every replica loads this adapter when it starts. A running cluster cannot load others."""
        if adapter not in self._adapters:
            raise InvalidRequest("A cluster serves only the adapters that its configuration names.", param="lora_name")

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        """Do nothing: the replicas keep their adapters."""

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
        """Generate an answer like `Engine.generate`. If a replica dies before its first delta, another one gets the request."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            number, answer = self._delta_receiver.register(usage, on_delta)
            try:
                await self._send(number, answer, prompt, sampling, stream)
            except ReplicaLost:
                if answer.started or attempt == MAX_ATTEMPTS:
                    raise
                log.warning("a replica was lost before its first delta; the request goes to another one")
            else:
                return
            finally:
                self._delta_receiver.unregister(number)

    async def _send(self, number: int, answer: PendingAnswer, prompt: Prompt, sampling: SamplingParams, stream: bool) -> None:
        """Send a request to a replica of Ray Serve's choice, and return when its answer is whole. Raises GatewayError."""
        self._connect()
        media = prompt.videos or prompt.images
        affinity = media[0].digest if media else ""
        trace, gateway = current_context().trace, self._delta_receiver.name
        response = self._handle.generate.remote(
            prompt, sampling, stream=stream, trace=trace, affinity=affinity, gateway=gateway, number=number
        )
        call = asyncio.create_task(_result(response))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # marks the error as retrieved
        usage_timeout = SHORT_USAGE_TIMEOUT
        try:
            await self._wait_for_either(call, answer)
            if not answer.end.done():
                if not await call:
                    raise ReplicaLost
                async with asyncio.timeout(END_TIMEOUT):
                    await asyncio.shield(answer.end)
            answer.end.result()
        except TimeoutError:
            raise ReplicaLost from None
        except asyncio.CancelledError:
            usage_timeout = USAGE_TIMEOUT if answer.replica else SHORT_USAGE_TIMEOUT
            raise
        finally:
            if not answer.is_whole:
                response.cancel()  # Ray's call ends at once; the replica's report comes later, over the delta connection
                await asyncio.wait((answer.end,), timeout=usage_timeout)

    async def _wait_for_either(self, call: asyncio.Task[bool], answer: PendingAnswer) -> None:
        """Return when the call or the answer has ended. Raises ReplicaLost if no replica is left.

        Until the first delta the request may wait for a replica, so new replicas are connected meanwhile.
        """
        while not (call.done() or answer.end.done()):
            timeout = None if answer.started else RECONNECT_INTERVAL
            await asyncio.wait((call, answer.end), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not answer.started:
                self._connect()

    def _connect(self) -> None:
        """Connect to all replicas that accept requests. Raises ReplicaLost if there is none."""
        replicas = self._replicas()
        self._delta_receiver.connect(replicas)
        if not replicas:
            raise _no_replica()

    async def check(self, timeout: float) -> None:
        """Raise ReplicaLost if no replica accepts requests. Each replica watches its own engine."""
        if not self._replicas():
            raise _no_replica()

    async def stop(self) -> None:
        """Do nothing: Ray Serve ends the replicas, and other gateways may use them."""


def _no_replica() -> ReplicaLost:
    return ReplicaLost("No replica of this model is running.")


async def _result(response: "DeploymentResponse[Any]") -> Any:
    """Return the result of a call of a replica's method. Raises GatewayError."""
    with _ray_errors_translated():
        return await response


@contextmanager
def _ray_errors_translated() -> Iterator[None]:
    """Raise GatewayError in place of Ray's errors."""
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
