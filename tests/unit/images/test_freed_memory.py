"""An image that cannot be decoded is freed at once."""

import asyncio
import contextlib
import gc
import weakref

from helpers.waiting import wait_for

from llava_gateway.images.fair_queue import FairThreads


class _Upload:
    """Stands for the bytes of an image."""


def _refuse(upload: _Upload) -> None:
    raise ValueError("not an image")


def test_arguments_of_a_failed_job_are_freed_without_a_garbage_collection() -> None:
    """A cycle of the job's future, its exception and a frame once kept the bytes of each refused image until a garbage collection."""
    upload = _Upload()
    freed = weakref.ref(upload)
    threads = FairThreads(1, "test")

    async def main(upload: _Upload) -> None:
        with contextlib.suppress(ValueError):
            await threads.run("a", _refuse, upload)

    gc.disable()
    try:
        job = main(upload)
        del upload
        asyncio.run(job)
        del job
        wait_for(lambda: freed() is None)  # the thread drops the job after its result
    finally:
        gc.enable()
        threads.close()
