"""Forms in a request's body (`multipart/form-data`, RFC 7578), with a bound on their number. The parser bounds their headers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llava_gateway.errors import InvalidRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 16
"""The upper bound of fields in a form."""
MAX_BOUNDARY = 70
"""The upper bound of a boundary in bytes, as in RFC 2046."""
MAX_HEAD = 4096
"""The upper bound of one header of a field, in bytes."""


@dataclass(frozen=True, slots=True)
class FormField:
    """One field of a form."""

    data: bytes
    filename: str | None
    """None: the field is no file."""


Form = Mapping[str, FormField]
"""The fields of a form by name."""


def form_boundary(content_type: str) -> bytes:
    """Return the boundary that a `content-type` header names. Raises UnsupportedMediaType and InvalidRequest."""
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType("The body must be multipart/form-data.")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise InvalidRequest(f"The content-type multipart/form-data must have a boundary of 1 to {MAX_BOUNDARY} characters.")
    return boundary


def parse_form(body: bytes | bytearray, boundary: bytes) -> Form:
    """Return the fields of a form by name. The first field of a name counts. Raises InvalidRequest."""
    fields = _Fields()
    try:
        parser = MultipartParser(boundary, fields.callbacks(), max_header_size=MAX_HEAD)
        parser.write(cast(bytes, body))  # a copy would double the memory; the parser only searches and slices
        parser.finalize()
    except FormParserError:
        raise InvalidRequest("The body is not valid multipart/form-data.") from None
    if not fields.ended:
        raise InvalidRequest("The form ends before its last boundary.")
    return fields.by_name


class _Fields:
    """Collects the fields that the parser finds."""

    def __init__(self) -> None:
        self.by_name: dict[str, FormField] = {}
        self.ended = False
        self._count = 0
        self._name: str | None = None
        self._filename: str | None = None
        self._header, self._value = bytearray(), bytearray()
        self._data: list[memoryview] = []
        """The pieces of the current field's content, in the body."""

    def callbacks(self) -> "MultipartCallbacks":
        """Return the parser's callbacks."""
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_part_data": lambda data, start, end: self._data.append(memoryview(data)[start:end]),
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._count += 1
        if self._count > MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")
        self._name = self._filename = None
        self._data = []

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name, self._filename = _text(options.get(b"name")), _text(options.get(b"filename"))
        self._header, self._value = bytearray(), bytearray()

    def _on_part_end(self) -> None:
        if self._name is None:
            raise InvalidRequest('Each field of the form must have the header content-disposition: form-data; name="...".')
        self.by_name.setdefault(self._name, FormField(b"".join(self._data), self._filename))

    def _on_end(self) -> None:
        self.ended = True


def _text(value: bytes | None) -> str | None:
    """Return a name as text. Browsers and SDKs send a quote in a name as `%22`."""
    return None if value is None else value.replace(b"%22", b'"').decode(errors="replace")
