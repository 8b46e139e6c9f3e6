"""Images that a batch names by a path are sent as data URIs, in every form of an image part."""

import base64
from pathlib import Path
from typing import Any

import pytest

from llava_gateway.batch.local_images import ImageFileError, with_local_images
from llava_gateway.demo.images import draw, encode

IMAGE = encode(draw(("red", "blue", "green", "white")))
URI = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"


def sent(part: dict[str, Any], folder: Path) -> Any:
    return with_local_images({"messages": [{"role": "user", "content": [part]}]}, folder)["messages"][0]["content"][0]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "cat.png"}}, {"type": "image_url", "image_url": {"url": URI}}),
        ({"type": "image_url", "image_url": "cat.png"}, {"type": "image_url", "image_url": URI}),
        ({"type": "image", "url": "cat.png"}, {"type": "image", "url": URI}),
        ({"type": "image", "path": "cat.png"}, {"type": "image", "url": URI}),
        ({"type": "image", "url": "https://example.com/cat.png"}, {"type": "image", "url": "https://example.com/cat.png"}),
        ({"type": "image", "base64": "cat.png"}, {"type": "image", "base64": "cat.png"}),
        ({"type": "image", "url": 5, "path": "cat.png"}, {"type": "image", "url": 5, "path": "cat.png"}),
        ({"type": "text", "path": "cat.png"}, {"type": "text", "path": "cat.png"}),
    ],
)
def test_path_in_an_image_part_becomes_a_data_uri(tmp_path: Path, part: dict[str, Any], expected: dict[str, Any]) -> None:
    (tmp_path / "cat.png").write_bytes(IMAGE)
    assert sent(part, tmp_path) == expected


@pytest.mark.parametrize("part", [{"type": "image", "url": "secret"}, {"type": "image", "path": "file:///etc/passwd"}])
def test_file_that_is_not_an_image_is_not_sent(tmp_path: Path, part: dict[str, Any]) -> None:
    (tmp_path / "secret").write_text("password")
    with pytest.raises(ImageFileError):
        sent(part, tmp_path)
