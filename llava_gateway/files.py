"""Reading files that somebody else has named. A FIFO or a device could block whoever opens it, perhaps for ever."""

import os
import stat
from pathlib import Path


def read_file(path: Path, max_bytes: int) -> bytes:
    """A regular file, or one behind links. Raises OSError, also for anything else and for a file that is larger."""
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "Not a regular file", str(path))
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(0, f"Larger than {max_bytes >> 20} MiB", str(path))
    return data


def _open(path: str, flags: int) -> int:
    """Without waiting for a writer."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
