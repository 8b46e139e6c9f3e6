"""Prepared images by digest, within a budget of bytes; the least recently used go first."""

from collections import OrderedDict

from llava_gateway.engine import PreparedImage

BYTES_PER_PIXEL = 3


class ImageCache:
    """For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._images: OrderedDict[str, PreparedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, digest: str) -> bool:
        return digest in self._images

    def get(self, digest: str) -> PreparedImage | None:
        image = self._images.get(digest)
        if image is not None:
            self._images.move_to_end(digest)
        return image

    def put(self, image: PreparedImage) -> None:
        if image.digest in self._images or _size(image) > self.max_bytes:
            return
        self._images[image.digest] = image
        self.bytes += _size(image)
        while self.bytes > self.max_bytes:
            _, oldest = self._images.popitem(last=False)
            self.bytes -= _size(oldest)


def _size(image: PreparedImage) -> int:
    return image.pixels.width * image.pixels.height * BYTES_PER_PIXEL
