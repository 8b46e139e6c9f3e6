"""The requests of a load test: which of them have images, and that each image is new."""

import itertools
import json
from typing import Any

import pytest

from llava_gateway.loadtest.bodies import chat_bodies
from llava_gateway.loadtest.client import Connection, Outcome


def images_of(body: bytes) -> list[Any]:
    content = json.loads(body)["messages"][0]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


def counts(number: int, **fields: Any) -> list[int]:
    bodies = chat_bodies("a", max_tokens=1, image_size=(32, 32), **fields)
    return [len(images_of(body)) for body in itertools.islice(bodies, number)]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 10), (0.5, 50), (0.7, 70), (1.0, 100)])
def test_share_of_requests_has_images(share: float, expected: int) -> None:
    with_images = counts(100, images=2, image_share=share)
    assert with_images.count(2) == pytest.approx(expected, abs=1)
    assert with_images.count(0) == 100 - with_images.count(2)


def test_images_are_spread_evenly() -> None:
    """Clients must not send all images first and all text later."""
    assert counts(8, images=1, image_share=0.5) == [0, 1] * 4
    assert all(sum(counts(100, images=1, image_share=0.7)[start : start + 10]) in (6, 7, 8) for start in range(0, 100, 10))


def test_all_requests_have_images_by_default() -> None:
    assert counts(3, images=1) == [1, 1, 1]
    assert counts(3) == [0, 0, 0]


def test_each_image_is_new_in_a_mixed_load() -> None:
    bodies = chat_bodies("a", max_tokens=1, images=1, image_size=(32, 32), image_share=0.5)
    seen = [uri for body in itertools.islice(bodies, 20) for uri in images_of(body)]
    assert len(set(seen)) == len(seen) == 10


def answered(body: bytes) -> Outcome:
    """Return the outcome of a response whose body is `body`."""
    import httptools

    connection = Connection()
    connection._parser = httptools.HttpResponseParser(connection)
    connection._done, connection._start = None, 0.0
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    return connection._outcome


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":587,"total_tokens":595,"completion_tokens":8}}', (587, 8)),
        (b'{"choices":[],"usage": {"prompt_tokens": 587, "completion_tokens": 8}}', (587, 8)),
        (b'{"choices":[]}', (None, 0)),
    ],
)
def test_counts_of_the_server_are_read(body: bytes, tokens: tuple[int | None, int]) -> None:
    outcome = answered(body)
    assert (outcome.prompt_tokens, outcome.completion_tokens) == tokens
