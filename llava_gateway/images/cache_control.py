"""How long the response to a GET may be reused. The rules are those of HTTP caching (RFC 9111) for a shared cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_VALIDATOR_LENGTH = 512
"""The greatest length of an `ETag` or `Last-Modified` that is stored, in characters."""
MAX_CACHE_CONTROL_LENGTH = 4096
"""The greatest length of a `Cache-Control` that is parsed, in characters."""


@dataclass(frozen=True, slots=True)
class CacheLifetime:
    """How long a stored response is fresh, and its validators."""

    seconds: float
    """The remaining freshness lifetime, counted from the moment of the response. 0: the response must be revalidated before each use."""
    etag: str | None = None
    last_modified: str | None = None

    @property
    def conditional_headers(self) -> dict[str, str]:
        """The headers of a conditional request, which revalidates the response. Empty if the origin sent no validator."""
        if self.etag:
            return {"if-none-match": self.etag}
        return {"if-modified-since": self.last_modified} if self.last_modified else {}


def cache_lifetime(headers: Mapping[str, str]) -> CacheLifetime | None:
    """Return the lifetime of a 200 or 304 response, or None if the response must not be stored.

    There is no heuristic freshness: a response without an explicit lifetime must be revalidated.
    """
    cache_control = headers.get("cache-control", "")
    if len(cache_control) > MAX_CACHE_CONTROL_LENGTH:
        return None
    directives = _parse_directives(cache_control)
    if "no-store" in directives or "private" in directives or headers.get("vary", "").strip() == "*":
        return None
    seconds = 0.0 if "no-cache" in directives else _freshness_lifetime(directives, headers) - _delta_seconds(headers.get("age", ""))
    return CacheLifetime(max(seconds, 0.0), _validator(headers.get("etag")), _validator(headers.get("last-modified")))


def _validator(value: str | None) -> str | None:
    """Return the validator if a later request may send it in a header: only printable ASCII is allowed there."""
    return value if value and len(value) <= MAX_VALIDATOR_LENGTH and value.isascii() and value.isprintable() else None


def _freshness_lifetime(directives: Mapping[str, str], headers: Mapping[str, str]) -> float:
    """Return the freshness lifetime in seconds (RFC 9111, section 4.2.1)."""
    for directive in ("s-maxage", "max-age"):
        if directive in directives:
            return _delta_seconds(directives[directive])
    if "expires" in headers:
        expires = _parse_date(headers["expires"])
        return (expires - (_parse_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds() if expires else 0.0
    return 0.0


def _parse_directives(value: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in value.split(","))
    return {name.strip().lower(): argument.strip().strip('"') for name, _, argument in pairs}


def _delta_seconds(value: str) -> float:
    """Return a number of seconds, or 0 if the value is not a number."""
    return float(value) if value.isascii() and value.isdigit() and len(value) < 12 else 0.0


def _parse_date(value: str) -> datetime | None:
    if len(value) > MAX_VALIDATOR_LENGTH:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
