"""The pool of worker processes for images whose cost is not known in advance."""

from PIL import Image

from llava_gateway.errors import InvalidImage
from llava_gateway.images.decode import Target
from llava_gateway.images.geometry import Size
from llava_gateway.images.worker_pool import WorkerConfig, WorkerPool
from llava_gateway.observability import metrics
from llava_gateway.settings import Settings

BASE_MEMORY = 256 << 20
"""The address space of a worker without an image, in bytes: 64 MiB for the interpreter and its libraries, and a reserve."""
BYTES_PER_PIXEL = 24
"""The address space for the decoding of the largest image. The greatest measured value is 22, for a lossy WebP with transparency."""


class ImageWorkers(WorkerPool):
    """Decodes images in worker processes. Used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        max_pixels = settings.max_image_megapixels * 1_000_000
        super().__init__(
            WorkerConfig(
                noun="image",
                error=InvalidImage,
                advice="send it smaller, or as a PNG or a baseline JPEG",
                module="llava_gateway.images.worker",
                max_workers=2 * settings.image_threads,
                memory=BASE_MEMORY + 3 * (settings.max_image_mb << 20) + BYTES_PER_PIXEL * max_pixels,
                cpu_seconds=settings.image_cpu_seconds,
                limits=(max_pixels,),
                ends=metrics.IMAGE_WORKER_ENDS,
            )
        )

    async def measure(self, data: bytes, client: str) -> Size:
        """Return the size that the image file declares, in pixels. Raises InvalidImage and Unavailable."""
        response, _ = await self.decode(data, None, client)
        width, height = response["size"]
        return width, height

    async def prepare(self, data: bytes, target: Target, client: str) -> Image.Image:
        """Return the image as `target` wants it, in RGB. Raises InvalidImage and Unavailable."""
        values = {"sizes": list(target.sizes.items()), "aspect_ratio": target.aspect_ratio, "mean_color": target.mean_color}
        response, pixels = await self.decode(data, values, client)
        return Image.frombytes("RGB", tuple(response["size"]), pixels)
