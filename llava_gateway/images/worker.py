"""A worker process, which opens and decodes images whose cost is not known in advance.

The operating system kills the worker when an image takes too much CPU time. Requests and responses are lines of JSON on standard input and
output. The file and the pixels are passed in memory that the worker shares with the gateway. The worker ends when its input ends, and
therefore also when the gateway ends.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from llava_gateway.errors import InvalidImage
from llava_gateway.images.decode import Target, open_image, render
from llava_gateway.images.geometry import Size

NICENESS = 10
"""On a busy machine the gateway, and an engine on the CPU, each get ten times as much CPU time as a worker."""


def main() -> None:
    """Run the worker. Its arguments: a descriptor of shared memory, bytes of address space, CPU seconds and pixels of an image."""
    shared, memory, cpu_seconds, max_pixels = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, the system kills this process and not the gateway
    _write({})
    decoder = Decoder(shared, max_pixels)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        response = decoder.handle(**json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(response)


class Decoder:
    """Opens and decodes one image at a time."""

    def __init__(self, shared: int, max_pixels: int) -> None:
        self._shared = shared
        self._max_pixels = max_pixels
        self._opened: Image.Image | None = None

    def handle(self, length: int | None, target: dict[str, Any] | None) -> dict[str, Any]:
        """Return a response with a `size`, or with an `error` and its `code`.

        `length`: of the file in shared memory, in bytes; None for the image that was opened last. `target`: if given, the image is decoded
        and the `size` is that of its pixels, which replace the file in shared memory; otherwise it is the size that the file declares.
        """
        try:
            if length is not None:
                self._opened = open_image(os.pread(self._shared, length, 0), self._max_pixels)
            assert self._opened
            return {"size": self._opened.size if target is None else self._render(self._opened, target)}
        except InvalidImage as error:
            return {"error": error.message, "code": error.code}
        except (MemoryError, RecursionError):
            return {"error": "The image takes too much memory to decode; send it smaller, or as a PNG or a baseline JPEG."}

    def _render(self, image: Image.Image, target: dict[str, Any]) -> Size:
        self._opened = None
        sizes = {tuple(size): tuple(output_size) for size, output_size in target["sizes"]}
        pixels = render(image, Target(sizes, target["aspect_ratio"], tuple(target["mean_color"])))
        os.pwrite(self._shared, pixels.tobytes(), 0)
        return pixels.size


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
