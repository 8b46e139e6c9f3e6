"""Prepared images by digest, within a budget of bytes; the least recently used go first."""

import threading
from collections import OrderedDict

from llava_gateway.engine import PreparedImage

BYTES_PER_PIXEL = 3


class ImageCache:
    """Safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._lock = threading.Lock()
        self._images: OrderedDict[str, PreparedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, digest: str) -> PreparedImage | None:
        with self._lock:
            image = self._images.get(digest)
            if image is not None:
                self._images.move_to_end(digest)
            return image

    def put(self, image: PreparedImage) -> None:
        with self._lock:
            if image.digest in self._images or _size(image) > self.max_bytes:
                return
            self._images[image.digest] = image
            self.bytes += _size(image)
            while self.bytes > self.max_bytes:
                _, oldest = self._images.popitem(last=False)
                self.bytes -= _size(oldest)


def _size(image: PreparedImage) -> int:
    return image.pixels.width * image.pixels.height * BYTES_PER_PIXEL
