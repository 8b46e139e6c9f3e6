"""A worker process, which opens and decodes images whose cost is not known in advance."""

import os
from typing import Any

from PIL import Image

from llava_gateway.errors import InvalidImage
from llava_gateway.images.decode import Target, open_image, render
from llava_gateway.images.worker_process import run


class ImageDecoder:
    """Opens and decodes one image at a time. The responses have its `size`, in pixels."""

    def __init__(self, shared: int, max_pixels: int) -> None:
        self._shared = shared
        self._max_pixels = max_pixels
        self._opened: Image.Image | None = None

    def handle(self, length: int | None, target: dict[str, Any] | None) -> dict[str, Any]:
        """Return a response for one file, as `worker_process.Decoder` describes it."""
        try:
            if length is not None:
                self._opened = open_image(os.pread(self._shared, length, 0), self._max_pixels)
            assert self._opened
            return {"size": self._opened.size, "length": 0} if target is None else self._render(self._opened, target)
        except InvalidImage as error:
            return {"error": error.message, "code": error.code}
        except (MemoryError, RecursionError):
            message = "The image takes too much memory to decode; send it smaller, or as a PNG or a baseline JPEG."
            return {"error": message, "code": InvalidImage.code}

    def _render(self, image: Image.Image, target: dict[str, Any]) -> dict[str, Any]:
        self._opened = None
        sizes = {tuple(size): tuple(output_size) for size, output_size in target["sizes"]}
        pixels = render(image, Target(sizes, target["aspect_ratio"], tuple(target["mean_color"])))
        return {"size": pixels.size, "length": os.pwrite(self._shared, pixels.tobytes(), 0)}


if __name__ == "__main__":
    run(ImageDecoder)
