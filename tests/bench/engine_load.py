"""How much an engine had to do during a load, by vLLM's own metrics and by the CPU time of its processes."""

from contextlib import suppress

import httpx
import psutil
from bench.peers import Peer, cpu_ns

STEPS, STEP_TOKENS = "vllm:iteration_tokens_total_count", "vllm:iteration_tokens_total_sum"
RUNNING, WAITING = "vllm:request_inference_time_seconds_sum", "vllm:request_queue_time_seconds_sum"
"""Sums over all requests that have ended: the seconds in which the engine had the request in its batches, and in its queue."""


class EngineLoad:
    """Reads the metrics and the clocks at the start of a load and at its end, when no request runs."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._metrics, self._cpu = self._read(), self._cpu_seconds()

    def figures(self, streams: int, seconds: float) -> dict[str, float]:
        """Return the figures by unit. A server without one of the metrics lacks the figure.

        A request that is outside of the engine waits for the front end or for the client. By Little's law the mean number of requests
        inside is the sum of their times inside, divided by the duration.

        `streams`: the number of clients. `seconds`: the duration of the load.
        """
        now = self._read()
        change = {name: now[name] - self._metrics[name] for name in now.keys() & self._metrics.keys()}
        figures = {"engine CPU, cores": (self._cpu_seconds() - self._cpu) / seconds}
        if RUNNING in change and WAITING in change:
            figures["requests in the engine's queue, mean"] = change[WAITING] / seconds
            figures["requests outside of the engine, mean"] = streams - (change[RUNNING] + change[WAITING]) / seconds
        if steps := change.get(STEPS):
            figures["steps/s"] = steps / seconds
            figures["tokens per step"] = change.get(STEP_TOKENS, 0) / steps
        return figures

    def _read(self) -> dict[str, float]:
        lines = httpx.get(f"{self._peer.url}/metrics", timeout=60).raise_for_status().text.splitlines()
        names = (STEPS, STEP_TOKENS, RUNNING, WAITING)
        found = [(name, float(line.split()[-1])) for line in lines for name in names if line.startswith((f"{name}{{", f"{name} "))]
        return {name: sum(value for each, value in found if each == name) for name, _ in found}

    def _cpu_seconds(self) -> float:
        total = 0
        for process in self._peer.server.children(recursive=True):
            with suppress(OSError, psutil.NoSuchProcess):
                if process.name().startswith("VLLM::"):
                    total += cpu_ns(process.pid)
        return total / 1e9
