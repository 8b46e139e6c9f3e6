"""How long the answer to a GET may be taken as known, by the rules of HTTP caching for a cache that many share (RFC 9111)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_VALIDATOR = 512
"""Longest `ETag` or `Last-Modified` that is kept, in characters."""
MAX_DIRECTIVES = 4096
"""Longest `Cache-Control` that is read."""


@dataclass(frozen=True, slots=True)
class Freshness:
    seconds: float
    """From now on."""
    etag: str | None = None
    last_modified: str | None = None

    @property
    def conditions(self) -> dict[str, str]:
        """Headers that ask the origin whether its answer has changed; none if it gave nothing to ask by."""
        if self.etag:
            return {"if-none-match": self.etag}
        return {"if-modified-since": self.last_modified} if self.last_modified else {}


def freshness(headers: Mapping[str, str]) -> Freshness | None:
    """Of a 200 answer; None if it must not be kept. No age is guessed: an answer that gives none is asked for again."""
    given = headers.get("cache-control", "")
    if len(given) > MAX_DIRECTIVES:
        return None
    control = _directives(given)
    if "no-store" in control or "private" in control or headers.get("vary", "").strip() == "*":
        return None
    seconds = 0.0 if "no-cache" in control else _lifetime(control, headers) - _number(headers.get("age", ""))
    return Freshness(max(seconds, 0.0), _validator(headers.get("etag")), _validator(headers.get("last-modified")))


def _validator(value: str | None) -> str | None:
    """A validator goes into the header of a later request, where only printable ASCII may stand."""
    return value if value and len(value) <= MAX_VALIDATOR and value.isascii() and value.isprintable() else None


def _lifetime(control: Mapping[str, str], headers: Mapping[str, str]) -> float:
    for directive in ("s-maxage", "max-age"):
        if directive in control:
            return _number(control[directive])
    if "expires" in headers:
        expires = _date(headers["expires"])
        return (expires - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds() if expires else 0.0
    return 0.0


def _directives(value: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in value.split(","))
    return {name.strip().lower(): argument.strip().strip('"') for name, _, argument in pairs}


def _number(value: str) -> float:
    return float(value) if value.isascii() and value.isdigit() and len(value) < 12 else 0.0


def _date(value: str) -> datetime | None:
    if len(value) > MAX_VALIDATOR:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
