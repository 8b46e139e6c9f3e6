"""The engine may die; the gateway may not. The supervisor asks the engine's own loop, again and again, whether it lives, and puts another
one in its place when it does not."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from llava_gateway.engine.base import Engine
from llava_gateway.errors import EngineStartError, GatewayError, Unavailable
from llava_gateway.types import Delta, LoraAdapter, ModelInfo, Prompt, SamplingParams, StructuredOutput, Usage

log = logging.getLogger(__name__)

PROBE_INTERVAL = 1.0
"""Seconds between two probes."""
RESPONSIVE = 5.0
"""An answer no older than so many seconds says that the engine is well."""
RETRY_AFTER = 10
MAX_BACKOFF = 60.0
HEALTHY = 60.0
"""Seconds of life after which the next death is not taken for the same trouble."""
PROGRESS_INTERVAL = 10.0


class Supervisor:
    """One engine at a time. Used from one event loop."""

    def __init__(
        self, make: Callable[[], Engine], timeout: float, on_death: Callable[[], None] | None = None, adapters: Sequence[LoraAdapter] = ()
    ) -> None:
        """`timeout`: seconds without an answer after which the engine counts as dead. `on_death`: called instead of a restart.
        `adapters`: loaded at the start."""
        self.timeout = timeout
        self.restarts = 0
        self.adapters = list(adapters)
        """What every engine has to load."""
        self._make = make
        self._on_death = on_death
        self._engine: Engine | None = None
        self._answered = 0.0
        self._began = time.monotonic()
        self._failed = self._dead = False
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> ModelInfo:
        """Start the first engine, and watch it from then on. Raises EngineStartError."""
        try:
            engine, model = await self._start()
        except Exception:
            self._failed = True
            raise
        self._watching = asyncio.create_task(self._watch(engine))
        return model

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        if self._engine:
            await self._engine.stop()

    def check(self) -> None:
        """Whether a request would be answered. Raises Unavailable, which says why not."""
        if self._failed:
            raise Unavailable("The model did not load; the server's log says why.", code="model_failed")
        if not self._dead and self._engine and self._engine.dead:  # the next probe will find out, too
            self._dead, self._began = True, time.monotonic()
        if self._dead:
            seconds = time.monotonic() - self._began
            raise Unavailable(
                f"The engine has died and is being restarted, for {seconds:.0f} s now.", code="engine_restarting", retry_after=RETRY_AFTER
            )
        if not self._answered:
            seconds = time.monotonic() - self._began
            stage = self._engine.stage if self._engine else "starting"
            raise Unavailable(f"The model is loading, for {seconds:.0f} s now: {stage}.", code="model_loading", retry_after=3)

    def check_responsive(self) -> None:
        """Whether the engine has answered within the last seconds. Raises Unavailable."""
        self.check()
        if (silent := time.monotonic() - self._answered) > RESPONSIVE:
            raise Unavailable(f"The engine has not answered for {silent:.0f} s.", code="engine_silent", retry_after=RETRY_AFTER)

    @property
    def is_responsive(self) -> bool:
        """Whether the engine has answered within the last seconds."""
        try:
            self.check_responsive()
        except Unavailable:
            return False
        return True

    async def check_structured_output(self, structured_output: StructuredOutput) -> None:
        await self._alive().check_structured_output(structured_output)

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, *, stream: bool, usage: Usage, on_delta: Callable[[Delta], None]
    ) -> None:
        await self._alive().generate(prompt, sampling, stream=stream, usage=usage, on_delta=on_delta)

    async def load_adapter(self, adapter: LoraAdapter) -> None:
        """As the engine's, which the next engine's start repeats."""
        await self._alive().load_adapter(adapter)
        self.adapters.append(adapter)

    async def unload_adapter(self, adapter: LoraAdapter) -> None:
        """As the engine's; if that is dead, the next one will not have it."""
        self.adapters.remove(adapter)
        with contextlib.suppress(Unavailable):
            await self._alive().unload_adapter(adapter)

    def _alive(self) -> Engine:
        self.check()
        assert self._engine
        return self._engine

    async def _start(self) -> tuple[Engine, ModelInfo]:
        self._engine = engine = self._make()
        progress = asyncio.create_task(self._report())
        try:
            model = await engine.start()
            await self._load_adapters(engine)
        finally:
            progress.cancel()
        self._answered = time.monotonic()
        self._dead = False
        return engine, model

    async def _load_adapters(self, engine: Engine) -> None:
        """All of them at the first start, or EngineStartError; later, one that is broken by now must not keep the model from its work."""
        for adapter in tuple(self.adapters):
            engine.stage = f"loading the adapter {adapter.name}"
            try:
                await engine.load_adapter(adapter)
            except GatewayError as error:
                if self._watching is None:
                    raise EngineStartError(f"the adapter {adapter.name}: {error.message}") from error
                log.error("The adapter %s did not come back: %s", adapter.name, error.message)

    async def _report(self) -> None:
        start = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            log.info("the model is loading, for %.0f s now: %s", time.monotonic() - start, self._engine and self._engine.stage)

    async def _watch(self, engine: Engine) -> None:
        backoff = 0.0
        while True:
            born = time.monotonic()
            await self._until_dead(engine)
            self._dead, self._began = True, time.monotonic()
            if time.monotonic() - born > HEALTHY:
                backoff = 0.0
            await self._end(engine)
            if self._on_death:
                self._on_death()
                return
            engine, backoff = await self._restart(backoff)
            self.restarts += 1
            log.warning("the engine is back after %.1f s", time.monotonic() - self._began)

    async def _until_dead(self, engine: Engine) -> None:
        while True:
            try:
                await engine.check(self.timeout)
            except Unavailable as error:
                log.error("the engine is given up: %s", error.message)
                return
            self._answered = time.monotonic()
            await asyncio.sleep(PROBE_INTERVAL)

    async def _restart(self, backoff: float) -> tuple[Engine, float]:
        """A living engine, and how long to wait before the next attempt if it dies soon."""
        while True:
            await asyncio.sleep(backoff)
            backoff = min(max(1.0, 2 * backoff), MAX_BACKOFF)
            try:
                engine, _ = await self._start()
            except Exception as error:
                known = isinstance(error, EngineStartError)
                log.error("The engine did not come back, and is tried again in %.0f s: %s", backoff, error, exc_info=not known)
                if self._engine:
                    await self._end(self._engine)
            else:
                return engine, backoff

    @staticmethod
    async def _end(engine: Engine) -> None:
        try:
            await engine.stop()
        except Exception:
            log.exception("The dead engine could not be stopped")
