"""The memory of images and videos: the cache of prepared ones, and the files that wait to be decoded. Both are bounded in bytes."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from llava_gateway.errors import TooManyRequests


class Prepared(Protocol):
    """A prepared image or video."""

    @property
    def digest(self) -> str:
        """The key in the cache."""


P = TypeVar("P", bound=Prepared)


class PreparedCache(Generic[P]):
    """Prepared images or videos by digest. Evicts the least recently used ones. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: the greatest size of all pixels."""
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[str, tuple[P, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def get(self, digest: str) -> P | None:
        """Return the image or video, or None if it is not in the cache."""
        if digest not in self._entries:
            return None
        self._entries.move_to_end(digest)
        return self._entries[digest][0]

    def put(self, prepared: P, size: int) -> None:
        """Add an image or video, and evict others if the cache is full. `size`: of its pixels, in bytes."""
        if prepared.digest in self._entries or size > self.max_bytes:
            return
        self._entries[prepared.digest] = prepared, size
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, (_, evicted) = self._entries.popitem(last=False)
            self.bytes -= evicted


class PendingFiles:
    """The total size of the files that are decoded or wait for decoding. A file that several requests share counts once."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._holders: Counter[str] = Counter()

    @contextmanager
    def hold(self, digest: str, size: int) -> Iterator[None]:
        """Count a file of `size` bytes within the block. Raises TooManyRequests if the total would be too large."""
        if not self._holders[digest]:
            if self.bytes + size > self._max_bytes:
                raise TooManyRequests("Too many images or videos wait to be decoded. Try again later.", code="queue_full", retry_after=1)
            self.bytes += size
        self._holders[digest] += 1
        try:
            yield
        finally:
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]
                self.bytes -= size
