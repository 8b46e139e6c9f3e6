"""The process that opens and decodes images whose cost is not known beforehand. The system ends it when one takes too much CPU time.

Its input and output are lines of JSON; file and pixels are handed over in memory that it shares with the gateway, whose descriptor is its
argument. It ends when its input does, and so with the gateway.
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
"""Where there is not CPU time for all, the gateway and an engine on the CPU go first: ten times as much for each of them."""


def main() -> None:
    shared, memory, cpu_seconds, max_pixels = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # a system without memory ends this process, not the gateway
    _answer({})
    decoder = Decoder(shared, max_pixels)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        answer = decoder.answer(**json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(answer)


class Decoder:
    def __init__(self, shared: int, max_pixels: int) -> None:
        self._shared = shared
        self._max_pixels = max_pixels
        self._opened: Image.Image | None = None

    def answer(self, length: int | None, target: dict[str, Any] | None) -> dict[str, Any]:
        """Without a target, the image's size; with one, the size of the pixels that are made of it; or what is wrong. Without a length, of
        the image that was opened last."""
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
        sizes = {tuple(size): tuple(made) for size, made in target["sizes"]}
        pixels = render(image, Target(sizes, target["aspect_ratio"], tuple(target["mean_color"])))
        os.pwrite(self._shared, pixels.tobytes(), 0)
        return pixels.size


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
