"""What is asked: short texts, and photographs that no server has seen."""

import base64
import io
import itertools
import secrets
from collections.abc import Iterator
from typing import Any

import orjson
from PIL import Image


def photograph(width: int, height: int) -> bytes:
    """A JPEG with detail at every scale, so that decoding it costs what a camera's costs: about 3 bits for a pixel."""
    bands = []
    for scale in (7, 11, 13):
        coarse = Image.effect_noise((scale * 4, scale * 3), 96).resize((width, height), Image.Resampling.BICUBIC)
        bands.append(Image.blend(coarse, Image.effect_noise((width, height), 48), 0.25))
    buffer = io.BytesIO()
    Image.merge("RGB", bands).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def another(jpeg: bytes, number: int) -> bytes:
    """Another picture of the same cost, with other pixels: servers that know pictures by their file, and those that know them by their
    pixels, take it for new. Each of the number's low 48 bits is added to a quantiser (ITU T.81, B.2.4.1) of fine detail."""
    table = jpeg.index(b"\xff\xdb") + 5
    quantisers = bytearray(jpeg[table : table + 64])
    for bit in range(48):
        quantisers[16 + bit] += number >> bit & 1
    return jpeg[:table] + quantisers + jpeg[table + 64 :]


def chat_bodies(
    model: str, *, max_tokens: int, stream: bool = True, images: int = 0, image_size: tuple[int, int] = (0, 0), **fields: Any
) -> Iterator[bytes]:
    """Chats without end, each with new pictures; `fields` go into every body."""
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
