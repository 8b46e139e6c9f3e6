"""The supervisor keeps an engine running: the engine may die, the gateway may not.

It asks the engine's own loop once in a second for an answer. An engine that is dead or silent is stopped, and another one is started.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from llava_gateway.engine.base import Engine
from llava_gateway.errors import EngineStartError, GatewayError, Unavailable
from llava_gateway.model_info import LoraAdapter, ModelInfo
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage

log = logging.getLogger(__name__)

PROBE_INTERVAL = 1.0
"""Seconds between two probes."""
MAX_SILENCE = 5.0
"""An engine is responsive if its last answer to a probe is at most this old, in seconds."""
RETRY_AFTER = 10
MAX_BACKOFF = 60.0
"""The longest pause between two attempts to restart the engine, in seconds."""
STABLE_AFTER = 60.0
"""An engine that has lived for so many seconds is stable: after its death the pause between attempts begins at 0 again."""
PROGRESS_INTERVAL = 10.0
"""Seconds between two log lines about a model that loads."""


class Supervisor:
    """Runs one engine at a time, restarts it after its death, and passes requests on to it. Used from one event loop."""

    def __init__(
        self,
        create_engine: Callable[[], Engine],
        timeout: float,
        on_death: Callable[[], None] | None = None,
        adapters: Sequence[LoraAdapter] = (),
    ) -> None:
        """Create the supervisor; `start` starts the first engine.

        `timeout`: seconds without an answer after which the engine counts as dead.
        `on_death`: called instead of a restart.
        `adapters`: the LoRA adapters that are loaded at the start.
        """
        self.timeout = timeout
        self.restarts = 0
        self.adapters = list(adapters)
        """The LoRA adapters that every new engine loads."""
        self._create_engine = create_engine
        self._on_death = on_death
        self._engine: Engine | None = None
        self._last_answer = 0.0
        self._not_ready_since = time.monotonic()
        self._start_failed = self._dead = False
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> ModelInfo:
        """Start the first engine, and watch it from then on. Raises EngineStartError."""
        try:
            engine, model = await self._start_engine()
        except Exception:
            self._start_failed = True
            raise
        self._watching = asyncio.create_task(self._watch(engine))
        return model

    async def stop(self) -> None:
        """Stop watching, and stop the engine."""
        if self._watching:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        if self._engine:
            await self._engine.stop()

    def check(self) -> None:
        """Raise Unavailable if a request would not be answered now. The error's message gives the reason."""
        if self._start_failed:
            raise Unavailable("The model did not load; the server's log says why.", code="model_failed")
        if not self._dead and self._engine and self._engine.dead:  # the next probe would find out up to a second later
            self._dead, self._not_ready_since = True, time.monotonic()
        if self._dead:
            seconds = time.monotonic() - self._not_ready_since
            raise Unavailable(
                f"The engine has died and is being restarted, for {seconds:.0f} s now.", code="engine_restarting", retry_after=RETRY_AFTER
            )
        if not self._last_answer:
            seconds = time.monotonic() - self._not_ready_since
            stage = self._engine.stage if self._engine else "starting"
            raise Unavailable(f"The model is loading, for {seconds:.0f} s now: {stage}.", code="model_loading", retry_after=3)

    def check_responsive(self) -> None:
        """Raise Unavailable if a request would not be answered now, or if the engine has not answered a probe for `MAX_SILENCE` seconds."""
        self.check()
        if (silence := time.monotonic() - self._last_answer) > MAX_SILENCE:
            raise Unavailable(f"The engine has not answered for {silence:.0f} s.", code="engine_silent", retry_after=RETRY_AFTER)

    @property
    def is_responsive(self) -> bool:
        """Whether `check_responsive` would pass."""
        try:
            self.check_responsive()
        except Unavailable:
            return False
        return True

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        """Like `Engine.check_structured_output`. Raises Unavailable if no engine runs."""
        await self._running_engine().check_structured_output(structured_output)

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
        """Like `Engine.generate`. Raises Unavailable if no engine runs."""
        await self._running_engine().generate(prompt, sampling, stream=stream, usage=usage, on_delta=on_delta, on_text=on_text)

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        """Load an adapter like `Engine.load_adapter`, and again after every restart. Raises Unavailable if no engine runs."""
        await self._running_engine().load_adapter(adapter)
        self.adapters.append(adapter)

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        """Unload an adapter like `Engine.unload_adapter`. If the engine is dead, the next one does not load the adapter."""
        self.adapters.remove(adapter)
        with contextlib.suppress(Unavailable):
            await self._running_engine().unload_adapter(adapter)

    def _running_engine(self) -> Engine:
        self.check()
        assert self._engine
        return self._engine

    async def _start_engine(self) -> tuple[Engine, ModelInfo]:
        self._engine = engine = self._create_engine()
        progress = asyncio.create_task(self._log_progress())
        try:
            model = await engine.start()
            await self._load_adapters(engine)
        finally:
            progress.cancel()
        self._last_answer = time.monotonic()
        self._dead = False
        return engine, model

    async def _load_adapters(self, engine: Engine) -> None:
        """Load all adapters.

        At the first start an adapter that cannot be loaded is an EngineStartError. After a restart the model serves without that adapter.
        """
        for adapter in tuple(self.adapters):
            engine.stage = f"loading the adapter {adapter.name}"
            try:
                await engine.load_adapter(adapter)
            except GatewayError as error:
                if self._watching is None:
                    raise EngineStartError(f"the adapter {adapter.name}: {error.message}") from error
                log.error("The adapter %s could not be loaded after the restart: %s", adapter.name, error.message)

    async def _log_progress(self) -> None:
        start = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            log.info("the model is loading, for %.0f s now: %s", time.monotonic() - start, self._engine and self._engine.stage)

    async def _watch(self, engine: Engine) -> None:
        """Restart the engine after each death, as long as the supervisor runs."""
        backoff = 0.0
        while True:
            started = time.monotonic()
            await self._wait_for_death(engine)
            self._dead, self._not_ready_since = True, time.monotonic()
            if time.monotonic() - started > STABLE_AFTER:
                backoff = 0.0
            await self._stop_engine(engine)
            if self._on_death:
                self._on_death()
                return
            engine, backoff = await self._restart(backoff)
            self.restarts += 1
            log.warning("the engine is back after %.1f s", time.monotonic() - self._not_ready_since)

    async def _wait_for_death(self, engine: Engine) -> None:
        """Probe the engine until it is dead or silent for too long."""
        while True:
            try:
                await engine.check(self.timeout)
            except Unavailable as error:
                log.error("the engine is given up: %s", error.message)
                return
            self._last_answer = time.monotonic()
            await asyncio.sleep(PROBE_INTERVAL)

    async def _restart(self, backoff: float) -> tuple[Engine, float]:
        """Start engines until one has started. Return it, and the pause before the next attempt if it dies soon.

        `backoff`: the pause before the first attempt, in seconds. It doubles with each attempt.
        """
        while True:
            await asyncio.sleep(backoff)
            backoff = min(max(1.0, 2 * backoff), MAX_BACKOFF)
            try:
                engine, _ = await self._start_engine()
            except Exception as error:
                expected = isinstance(error, EngineStartError)
                log.error("The engine could not be restarted; next attempt in %.0f s: %s", backoff, error, exc_info=not expected)
                if self._engine:
                    await self._stop_engine(self._engine)
            else:
                return engine, backoff

    @staticmethod
    async def _stop_engine(engine: Engine) -> None:
        try:
            await engine.stop()
        except Exception:
            log.exception("The dead engine could not be stopped")
