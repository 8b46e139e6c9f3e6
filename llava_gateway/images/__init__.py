"""Images: from a URL or data URI in a request to the small square that the model sees."""

from llava_gateway.errors import InvalidImage


def too_large(max_bytes: int) -> InvalidImage:
    """The refusal of an image file over the limit, however it came."""
    return InvalidImage(f"The image is larger than {max_bytes >> 20} MiB.", code="image_too_large")
