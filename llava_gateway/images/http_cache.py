"""Image URLs that were fetched a moment ago: what they gave, by digest, for as long as HTTP allows."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakValueDictionary

from blake3 import blake3

from llava_gateway.images.cache_control import Freshness
from llava_gateway.images.fetch import Download, Fetcher
from llava_gateway.images.single_flight import SingleFlight
from llava_gateway.observability import metrics
from llava_gateway.settings import Settings

MAX_BYTES = 16 << 20
"""Memory of URLs and of what is known of them."""
ENTRY_BYTES = 1024
"""Memory of an entry, apart from its strings."""


@dataclass(frozen=True, slots=True)
class _Known:
    content: str
    expires: float
    freshness: Freshness

    def size(self, url: str) -> int:
        """In bytes, with its URL."""
        return ENTRY_BYTES + len(url) + len(self.freshness.etag or "") + len(self.freshness.last_modified or "")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Fetched:
    content: str
    """Digest of the file."""
    data: bytes | None
    """The file; None if it is as it was, and no request has it in hand."""


class UrlImages:
    """Equal URLs are fetched once at a time. No fetch carries a client's credentials, so what one is told holds for all."""

    def __init__(self, settings: Settings) -> None:
        self.ttl = settings.image_url_ttl
        self.bytes = 0
        self._fetcher = Fetcher(settings)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._fetching: SingleFlight[Fetched] = SingleFlight()
        self._in_hand: WeakValueDictionary[str, Fetched] = WeakValueDictionary()
        """Files by digest. Each is in here for as long as a request that fetched it keeps it: until its picture is prepared."""
        metrics.URL_CACHE_BYTES.set_function(lambda: self.bytes)

    def fresh(self, url: str) -> Fetched | None:
        """What the URL gave, if that may be taken as known."""
        known = self._known.get(url)
        return self._recall(known) if known and time.monotonic() < known.expires else None

    async def fetch(self, url: str, *, anew: bool = False) -> Fetched:
        """Raises InvalidImage. `anew`: with its data, whatever is known of it."""
        if shared := url in self._fetching:
            metrics.IMAGE_URLS.labels("shared").inc()
        fetched = await self._fetching.do(url, lambda: self._fetch(url, anew))
        if shared and anew and fetched.data is None:
            return await self._fetch(url, anew)
        return fetched

    async def close(self) -> None:
        await self._fetcher.close()

    async def _fetch(self, url: str, anew: bool) -> Fetched:
        known = None if anew else self._known.get(url)
        download = await self._fetcher.fetch(url, known.freshness.conditions if known else None)
        metrics.IMAGE_URLS.labels("fetched" if download.data is not None else "unchanged").inc()
        if download.data is not None:
            fetched = Fetched(blake3(download.data).hexdigest(), download.data)
            self._in_hand[fetched.content] = fetched
        else:
            assert known
            fetched = self._recall(known)
        self._learn(url, fetched.content, download)
        return fetched

    def _recall(self, known: _Known) -> Fetched:
        return self._in_hand.get(known.content) or Fetched(known.content, None)

    def _learn(self, url: str, content: str, download: Download) -> None:
        if known := self._known.pop(url, None):
            self.bytes -= known.size(url)
        if download.freshness is None or not (self.ttl and (download.freshness.seconds or download.freshness.conditions)):
            return
        known = _Known(content, time.monotonic() + min(download.freshness.seconds, self.ttl), download.freshness)
        self._known[url] = known
        self.bytes += known.size(url)
        while self.bytes > MAX_BYTES:
            oldest, forgotten = self._known.popitem(last=False)
            self.bytes -= forgotten.size(oldest)
