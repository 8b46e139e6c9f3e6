"""Reading files whose names come from users or clients.

A name may belong to a FIFO or a device, and opening one of these can block forever. These functions never block.
"""

import os
import stat
from pathlib import Path


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Symbolic links are followed.

    `max_bytes`: the upper bound of the content. Raises OSError if the file is larger, is not a regular file, or cannot be read.

        template = read_file(Path("template.jinja"), 1 << 20).decode()
    """
    with open(path, "rb", opener=_open_without_blocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "Not a regular file", str(path))
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(0, f"Larger than {max_bytes >> 20} MiB", str(path))
    return data


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
