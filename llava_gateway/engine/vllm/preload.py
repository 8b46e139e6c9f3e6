"""The variable LD_PRELOAD: the libraries that vLLM has the linker load into the engine's process on a CPU."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRELOAD = "LD_PRELOAD"
"""The environment variable with the libraries that the linker loads into each new process."""


@contextmanager
def own_preload() -> Iterator[None]:
    """Restore the variable LD_PRELOAD after the block.

    On a CPU vLLM adds libraries for the engine's process. The gateway's other processes, such as decoders of images, need none of them.
    """
    before = os.environ.get(PRELOAD)
    try:
        yield
    finally:
        os.environ.pop(PRELOAD, None)
        if before is not None:
            os.environ[PRELOAD] = before


@contextmanager
def linked_preload() -> Iterator[None]:
    """Within the block, LD_PRELOAD names links instead of libraries whose paths have a space.

    A space separates two paths, so the linker would not find these libraries, and the engine would use only one core.
    """
    paths = os.environ.get(PRELOAD, "").split(":")
    if not any(" " in path for path in paths):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="llava-gateway-", dir="/tmp") as folder:  # its path has no space
        for index, path in enumerate(paths):
            if " " in path and Path(path).is_file():
                link = Path(folder) / f"{index}-{Path(path).name.replace(' ', '_')}"
                link.symlink_to(path)
                paths[index] = str(link)
        os.environ[PRELOAD] = ":".join(paths)
        yield
