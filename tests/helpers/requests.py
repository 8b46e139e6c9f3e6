"""Requests to the demo model about images that are grids of four colours."""

from typing import Any

from llava_gateway.demo.images import Grid, data_uri, draw, encode

MODEL = "llava-demo"


def image(grid: Grid) -> dict[str, Any]:
    """Return an image part that shows a grid."""
    return image_part(data_uri(encode(draw(grid))))


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*content: Any) -> dict[str, Any]:
    """Return a user message of image parts and texts."""
    return {"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]}


def body(*content: Any, **fields: Any) -> dict[str, Any]:
    """Return a chat request with one user message. `fields`: more fields of the request, or other values (temperature is 0)."""
    return {"model": MODEL, "messages": [user(*content)], "temperature": 0, "max_tokens": 200, **fields}
