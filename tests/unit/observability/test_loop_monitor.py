"""The event loop's monitor counts the loop's own work and not a busy machine."""

import asyncio
import time

from llava_gateway.observability import metrics
from llava_gateway.observability.loop_monitor import LoopMonitor


def test_stall_is_counted_and_a_busy_machine_is_not() -> None:
    def counts() -> tuple[float, float]:
        return tuple(  # type: ignore[return-value]
            sum(sample.value for sample in next(iter(metric.collect())).samples if sample.name.endswith("_sum"))
            for metric in (metrics.LOOP_DELAY, metrics.LOOP_STALL)
        )

    async def hold(work: str) -> tuple[float, float]:
        monitor = LoopMonitor()
        monitor.start()
        delay, stall = counts()
        end = time.thread_time() + 0.3
        if work == "compute":
            while time.thread_time() < end:
                pass
        else:
            time.sleep(0.3)  # noqa: ASYNC251 # as a machine that gives this thread no time
        await asyncio.sleep(0.01)
        monitor.stop()
        return counts()[0] - delay, counts()[1] - stall

    delay, stall = asyncio.run(hold("compute"))
    assert delay >= stall >= 0.2
    delay, stall = asyncio.run(hold("sleep"))
    assert delay >= 0.2
    assert stall < 0.1
