"""Short ways to ask the demo model about grids."""

from typing import Any

from llava_gateway.demo.images import Grid, data_uri, draw, encode

MODEL = "llava-demo"


def image(grid: Grid) -> dict[str, Any]:
    return image_part(data_uri(encode(draw(grid))))


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*content: Any) -> dict[str, Any]:
    """A user message of image parts and texts."""
    return {"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]}


def body(*content: Any, **fields: Any) -> dict[str, Any]:
    """A request of one user message, greedy unless it says otherwise."""
    return {"model": MODEL, "messages": [user(*content)], "temperature": 0, "max_tokens": 200, **fields}
