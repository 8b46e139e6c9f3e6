"""Forms in a request's body (`multipart/form-data`, RFC 7578), with a bound on their number. The parser bounds their headers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llava_gateway.errors import InvalidRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 32


@dataclass
class FormField:
    """One field of a form."""

    name: str = ""
    filename: str | None = None
    """The name of a file. None: the field is no file."""
    value: bytearray = field(default_factory=bytearray)


Form = Mapping[str, FormField]
"""The fields of a form by their names. The last of several fields with one name counts."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary between the fields from the header `content-type`. Raises UnsupportedMediaType."""
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise UnsupportedMediaType("The body must be multipart/form-data with a boundary.")
    return boundary


def parse_form(body: bytes | bytearray, boundary: bytes) -> Form:
    """Return the fields of a whole body. Raises InvalidRequest."""
    fields = _Fields()
    try:
        parser = MultipartParser(boundary, fields.callbacks())
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError:
        raise InvalidRequest("The body is not valid multipart/form-data.") from None
    if not fields.ended:
        raise InvalidRequest("The body ends before the last boundary of its form.")
    return {each.name: each for each in fields.fields}


class _Fields:
    """Collects the fields that the parser finds."""

    def __init__(self) -> None:
        self.fields: list[FormField] = []
        self.ended = False
        self._header, self._value = bytearray(), bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        """Return the parser's callbacks."""
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_part_data": lambda data, start, end: self.fields[-1].value.extend(memoryview(data)[start:end]),
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        if len(self.fields) == MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")
        self.fields.append(FormField())

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self.fields[-1].name = options.get(b"name", b"").decode(errors="replace")
            if b"filename" in options:
                self.fields[-1].filename = options[b"filename"].decode(errors="replace")
        self._header, self._value = bytearray(), bytearray()

    def _on_end(self) -> None:
        self.ended = True
