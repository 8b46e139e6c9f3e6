"""The engine's process, started before vLLM is imported.

vLLM creates the engine's process after the gateway has imported vLLM, and the new process then imports vLLM again. Here both import at the
same time. The process waits at a pipe for the function that vLLM has for it, and runs that function as if vLLM had created the process.

The process must not differ from vLLM's own in its environment. If vLLM would set other variables, or has several processes, or if anything
else is not as expected, the process is ended and vLLM creates its own. The process ends by itself when the pipe closes, so it does not
outlive the gateway.
"""

import gc
import importlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from llava_gateway.engine.vllm.compat import engine_process
from llava_gateway.engine.vllm.preload import linked_preload
from llava_gateway.engine.vllm.unused_modules import is_plain, unused_modules, without_modules

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = logging.getLogger(__name__)


class _Process(SpawnProcess):
    """A process that may be started twice: by `EarlyProcess`, and by vLLM, which starts every process that it has created."""

    def start(self) -> None:
        if self.pid is None:
            super().start()


class EarlyProcess:
    """At most one process that waits for vLLM's engine. Used by one thread."""

    def __init__(self, flags: Sequence[str]) -> None:
        """Create the object; `start` starts the process. `flags`: vLLM's own."""
        self._flags = flags
        self._process: _Process | None = None
        self._work: Connection | None = None
        self._variables: dict[str, str] = {}
        self._cleanup = ExitStack()

    def start(self, kind: str | None) -> None:
        """Start the process if the engine can be expected to fit into it. All variables for the engine must have been set.

        `kind`: `model_type` of the checkpoint's config.json, if that is known. The process imports the code of this model.
        """
        if not is_plain(self._flags):
            return
        self._variables = engine_process.variables()
        models = [f"{package}.{kind}" for package in engine_process.MODEL_MODULES] if kind else []
        receiver, self._work = get_context("spawn").Pipe(duplex=False)
        arguments = (receiver, unused_modules(self._flags), [*engine_process.MODULES, *models])
        self._process = _Process(target=_wait_for_engine, name=engine_process.NAME, args=arguments)
        try:
            with receiver, _set_variables(self._variables):
                self._cleanup.enter_context(linked_preload())
                self._process.start()
        except OSError as error:  # the system has no memory or no process left; vLLM's own attempt reports the error
            log.info("the engine's process could not be started ahead: %s", error)
            self._process = None
            self.close()

    @contextmanager
    def offered(self, config: "VllmConfig") -> Iterator[None]:
        """Within the block, vLLM gets this process for its engine, if the process fits. Otherwise the process is ended.

        `config`: of the engine. vLLM has set the engine's variables when it created the configuration.
        """
        if self._process and not self._fits(config):
            self.close()
        with engine_process.offer(self._run):
            yield

    def close(self) -> None:
        """End the process, unless vLLM has got it."""
        if self._work:
            self._work.close()
        if self._process:
            self._process.kill()
            self._process.join()
        self._process = self._work = None
        self._cleanup.close()

    def _fits(self, config: "VllmConfig") -> bool:
        if not engine_process.is_single_process(config):
            return False
        if changed := sorted(name for name, value in self._variables.items() if os.environ.get(name) != value):
            log.info("the engine's process is started anew, because vLLM sets other values of %s", ", ".join(changed))
        return not changed

    def _run(self, function: Callable[..., None], arguments: dict[str, Any]) -> BaseProcess | None:
        """Have the process run vLLM's function, and return the process. Return None if it cannot run it."""
        if not self._process or not self._work:
            return None
        try:
            self._work.send_bytes(ForkingPickler.dumps((function, arguments, dict(os.environ))))
        except Exception as error:  # the process has died, or an argument can only be given to a process that is being created
            log.info("the engine's process is started anew: %s", error)
            self.close()
            return None
        self._work.close()
        process, self._process, self._work = self._process, None, None
        return process


@contextmanager
def _set_variables(variables: dict[str, str]) -> Iterator[None]:
    """Within the block, the environment has these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _wait_for_engine(work: Connection, unused: Sequence[str], modules: Sequence[str]) -> None:
    """Import modules, wait for vLLM's function, and run it. Runs in the engine's process; returns if the gateway has closed the pipe.

    `unused`: modules that must not be imported.
    """
    with suppress(ImportError):
        import setproctitle

        setproctitle.getproctitle()  # finds the name's place in memory, which is lost when variables change; vLLM sets the name
    with without_modules(unused):
        gc.disable()
        for name in modules:
            with suppress(Exception):  # the engine imports what it needs once more, and reports the error
                importlib.import_module(name)
        gc.freeze()
        gc.enable()
        try:
            with work:
                function, arguments, environment = pickle.loads(work.recv_bytes())  # noqa: S301 # the gateway's own message
        except (EOFError, OSError):
            sys.exit()
        os.environ.update(environment)
        function(**arguments)
