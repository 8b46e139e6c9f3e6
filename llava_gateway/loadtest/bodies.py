"""The bodies of a load test's requests: short texts, and generated photographs that no server has in a cache."""

import base64
import io
import itertools
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


def another(jpeg: bytes, number: int) -> bytes:
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
    model: str, *, max_tokens: int, stream: bool = True, images: int = 0, image_size: tuple[int, int] = (0, 0), **fields: Any
) -> Iterator[bytes]:
    """Yield an endless series of chat requests, each with new images.

    `image_size`: width and height in pixels. `fields`: added to every body.
    """
    photo = photograph(*image_size) if images else b""
    numbers = itertools.count(secrets.randbits(48))
    for number in itertools.count():
        content: list[dict[str, Any]] = [{"type": "text", "text": f"Question {number}: describe the image."}]
        for _ in range(images):
            uri = "data:image/jpeg;base64," + base64.b64encode(another(photo, next(numbers))).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "temperature": 0, **fields}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        yield orjson.dumps(body)
