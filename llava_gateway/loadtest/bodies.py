"""The bodies of a load test's requests: short texts, and generated photographs that no server has in a cache."""

import base64
import io
import itertools
import math
import secrets
from collections.abc import Iterator
from typing import Any

import orjson
from PIL import Image


def photograph(width: int, height: int) -> bytes:
    """Return a generated JPEG. It has detail at every scale, about 3 bits per pixel, so decoding costs as much as for a camera's photo."""
    bands = []
    for scale in (7, 11, 13):
        coarse = Image.effect_noise((scale * 4, scale * 3), 96).resize((width, height), Image.Resampling.BICUBIC)
        bands.append(Image.blend(coarse, Image.effect_noise((width, height), 48), 0.25))
    buffer = io.BytesIO()
    Image.merge("RGB", bands).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def with_new_pixels(jpeg: bytes, number: int) -> bytes:
    """Return a variant of the photograph that costs as much to decode, but has different pixels.

    So a cache misses, whether its key is the file's content or the pixels. Each of the low 48 bits of `number` is added to an entry of the
    quantization table for fine detail (ITU T.81, B.2.4.1).
    """
    table = jpeg.index(b"\xff\xdb") + 5
    quantizers = bytearray(jpeg[table : table + 64])
    for bit in range(48):
        quantizers[16 + bit] += number >> bit & 1
    return jpeg[:table] + quantizers + jpeg[table + 64 :]


def chat_bodies(
    model: str,
    *,
    max_tokens: int,
    stream: bool = True,
    images: int = 0,
    image_size: tuple[int, int] = (0, 0),
    image_share: float = 1,
    **fields: Any,
) -> Iterator[bytes]:
    """Yield an endless series of chat requests, with new images in each request or in some.

    `images`: the number of images in a request that has images. `image_size`: width and height in pixels. `image_share`: the share of
    requests that have images, from 0 to 1; they are spread evenly. `fields`: added to every body.
    """
    photo = photograph(*image_size) if images else b""
    numbers = itertools.count(secrets.randbits(48))
    for number in itertools.count():
        content: list[dict[str, Any]] = [{"type": "text", "text": f"Question {number}: describe the image."}]
        has_images = math.floor((number + 1) * image_share) > math.floor(number * image_share)
        for _ in range(images if has_images else 0):
            uri = "data:image/jpeg;base64," + base64.b64encode(with_new_pixels(photo, next(numbers))).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "temperature": 0, **fields}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        yield orjson.dumps(body)
