"""The parameters of OpenAI's lists: `limit`, `order` and `after`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_gateway.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Paging:
    """The part of a list that a client asks for."""

    limit: int
    """The upper bound of entries in the answer."""
    oldest_first: bool
    after: str
    """The id of the last entry that the client has. Empty: it has none."""

    @classmethod
    def read(cls, query: Mapping[str, str], *, default_limit: int, max_limit: int) -> "Paging":
        """Return the parameters of a query. Raises InvalidRequest."""
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc.", param="order")
        limit = query.get("limit")
        return cls(default_limit if limit is None else integer(limit, "limit", 1, max_limit), order == "asc", query.get("after", ""))

    def start(self, ids: Sequence[str]) -> int:
        """Return the position of the first entry to list. `ids`: of all entries in the order of the list. Raises InvalidRequest."""
        if not self.after:
            return 0
        if self.after not in ids:
            raise InvalidRequest("after must be the id of an entry of this list.", param="after")
        return ids.index(self.after) + 1


def integer(text: str, param: str, least: int, most: int) -> int:
    """Return the integer that a query or a form has as text. Raises InvalidRequest."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        raise InvalidRequest(f"{param} must be an integer from {least} to {most}.", param=param)
    return int(text)
