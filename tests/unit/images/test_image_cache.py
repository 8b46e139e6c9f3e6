"""The cache of prepared images and videos: which ones it evicts, and how it counts their memory."""

from PIL import Image

from llava_gateway.images.memory import PreparedCache
from llava_gateway.types import PreparedImage

SIZE = 10 * 10 * 3


def image(digest: str) -> PreparedImage:
    return PreparedImage(Image.new("RGB", (10, 10)), digest, (10, 10), 576)


def test_the_least_recently_used_image_is_evicted() -> None:
    cache = PreparedCache[PreparedImage](3 * SIZE)
    for digest in "abc":
        cache.put(image(digest), SIZE)
    assert cache.get("a")
    cache.put(image("d"), SIZE)
    assert [digest for digest in "abcd" if cache.get(digest)] == ["a", "c", "d"]
    assert cache.bytes == 3 * SIZE


def test_an_image_that_is_added_again_is_not_counted_twice() -> None:
    cache = PreparedCache[PreparedImage](3 * SIZE)
    for _ in range(5):
        cache.put(image("a"), SIZE)
    assert (len(cache), cache.bytes) == (1, SIZE)


def test_a_cache_of_size_zero_stores_nothing() -> None:
    cache = PreparedCache[PreparedImage](0)
    cache.put(image("a"), SIZE)
    assert cache.get("a") is None
