"""A cache of the URLs of images or videos: the digest of the file at each URL, for as long as HTTP caching allows (RFC 9111)."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from blake3 import blake3
from prometheus_client import Counter

from llava_gateway.images.cache_control import CacheLifetime
from llava_gateway.images.fetch import Download, Fetcher
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.observability import metrics
from llava_gateway.observability.context import timed
from llava_gateway.settings import Settings

MAX_BYTES = 16 << 20
"""The greatest size of the cache, in bytes."""
ENTRY_BYTES = 1024
"""The size of an entry without its strings, in bytes."""


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    digest: str
    """The digest of the file."""
    expires: float
    """The time until which the entry is fresh, by the monotonic clock."""
    lifetime: CacheLifetime

    def size(self, url: str) -> int:
        """Return the size of the entry and its URL, in bytes."""
        return ENTRY_BYTES + len(url) + len(self.lifetime.etag or "") + len(self.lifetime.last_modified or "")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class FetchedFile:
    """The file at a URL."""

    digest: str
    """The BLAKE3 digest of the file, in hexadecimal."""
    data: bytes | None
    """The file; None if the file has not changed and no request holds it in memory."""


class UrlCache:
    """Fetches URLs of images, or of videos, and caches their digests. Used from one event loop.

    Concurrent fetches of one URL are shared. No fetch carries a client's credentials, so a response is valid for every client.
    """

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None, counter: Counter = metrics.IMAGE_URLS) -> None:
        """`fetcher`: None for one of images. `counter`: counts the URLs by source."""
        self.ttl = settings.image_url_ttl
        self.bytes = 0
        self.fetcher = fetcher or Fetcher(settings)
        self._counter = counter
        self._entries: OrderedDict[str, _CacheEntry] = OrderedDict()
        self._fetching: SingleFlight[FetchedFile] = SingleFlight()
        self._files: WeakValueDictionary[str, FetchedFile] = WeakValueDictionary()
        """Files in memory, by digest. A file stays here as long as a request refers to it: until the request's image is prepared."""

    async def load(self, url: str, is_sufficient: Callable[[FetchedFile], bool]) -> FetchedFile:
        """Return the file at a URL: that of a fresh entry if it `is_sufficient`, or a fetched one.

        A file that is not sufficient has no data. Raises InvalidImage.
        """
        file = self.get_fresh(url)
        if file and is_sufficient(file):
            self._counter.labels("fresh").inc()
            return file
        with timed("fetch"):
            file = await self.fetch(url)
            return file if is_sufficient(file) else await self.fetch(url, reload=True)

    def get_fresh(self, url: str) -> FetchedFile | None:
        """Return the file of a fresh entry, or None if the URL must be fetched."""
        entry = self._entries.get(url)
        return self._file_of(entry) if entry and time.monotonic() < entry.expires else None

    async def fetch(self, url: str, *, reload: bool = False) -> FetchedFile:
        """Fetch the URL. An entry with validators is revalidated by a conditional request.

        `reload`: ignore the cache and return the file with its data. Raises InvalidImage.
        """
        if shared := url in self._fetching:
            self._counter.labels("shared").inc()
        file = await self._fetching.do(url, lambda: self._fetch(url, reload))
        if shared and reload and file.data is None:
            return await self._fetch(url, reload)
        return file

    async def close(self) -> None:
        """Cancel the lookups of host names."""
        await self.fetcher.close()

    async def _fetch(self, url: str, reload: bool) -> FetchedFile:
        entry = None if reload else self._entries.get(url)
        download = await self.fetcher.fetch(url, entry.lifetime.conditional_headers if entry else None)
        self._counter.labels("fetched" if download.data is not None else "unchanged").inc()
        if download.data is not None:
            file = FetchedFile(blake3(download.data).hexdigest(), download.data)
            self._files[file.digest] = file
        else:
            assert entry
            file = self._file_of(entry)
        self._store(url, file.digest, download)
        return file

    def _file_of(self, entry: _CacheEntry) -> FetchedFile:
        return self._files.get(entry.digest) or FetchedFile(entry.digest, None)

    def _store(self, url: str, digest: str, download: Download) -> None:
        """Replace the URL's entry, or delete it if the response must not be stored. Evict the oldest entries if the cache is full."""
        if entry := self._entries.pop(url, None):
            self.bytes -= entry.size(url)
        lifetime = download.lifetime
        if lifetime is None or not (self.ttl and (lifetime.seconds or lifetime.conditional_headers)):
            return
        entry = _CacheEntry(digest, time.monotonic() + min(lifetime.seconds, self.ttl), lifetime)
        self._entries[url] = entry
        self.bytes += entry.size(url)
        while self.bytes > MAX_BYTES:
            oldest_url, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.size(oldest_url)
