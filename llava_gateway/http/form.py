"""Forms in `multipart/form-data` (RFC 7578), parsed in memory from a whole body. Parts are not nested, and few."""

import re
from dataclasses import dataclass

from llava_gateway.errors import InvalidRequest, UnsupportedMediaType

MAX_FIELDS = 16
"""The upper bound of fields in a form."""
MAX_HEAD = 4096
"""The upper bound of the headers of one field, in bytes."""
_BOUNDARY = re.compile(r""";\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))""", re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(rb""";[ \t]*([a-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FormField:
    """One field of a form."""

    data: bytes
    filename: str | None
    """None: the field is no file."""


def form_boundary(content_type: str) -> bytes:
    """Return the boundary that a `content-type` header names. Raises UnsupportedMediaType and InvalidRequest."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(f"The body must be multipart/form-data, not {media_type[:100]}.")
    if (found := _BOUNDARY.search(content_type)) is None:
        raise InvalidRequest("The content-type multipart/form-data must have a boundary.")
    return (found[1] or found[2]).encode("latin-1", errors="replace")


def parse_form(body: bytes | bytearray, boundary: bytes) -> dict[str, FormField]:
    """Return the fields of a form by name. The first field of a name counts. Raises InvalidRequest."""
    fields: dict[str, FormField] = {}
    delimiter = b"--" + boundary
    position = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if position == 1:
        raise InvalidRequest("The form does not begin with its boundary.")
    for _ in range(MAX_FIELDS + 1):
        position += len(delimiter)
        if body[position : position + 2] == b"--":
            return fields
        if body[position : position + 2] != b"\r\n":
            raise InvalidRequest("A boundary of the form must be a line of its own.")
        end = body.find(b"\r\n" + delimiter, position)
        if end < 0:
            raise InvalidRequest("The form ends before its last boundary.")
        head_end = body.find(b"\r\n\r\n", position, min(end, position + MAX_HEAD))
        if head_end < 0:
            raise InvalidRequest(f"A field of the form must have headers of at most {MAX_HEAD} bytes, and an empty line after them.")
        name, filename = _names(bytes(body[position + 2 : head_end]))
        if name not in fields:
            fields[name] = FormField(bytes(body[head_end + 4 : end]), filename)
        position = end + 2
    raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")


def _names(head: bytes) -> tuple[str, str | None]:
    """Return the field's name and its file's name from the headers of a field. Raises InvalidRequest."""
    disposition = _DISPOSITION.search(head.replace(b"\r\n", b"\n"))
    parameters = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(disposition[1])} if disposition else {}
    if b"name" not in parameters:
        raise InvalidRequest('Each field of the form must have the header content-disposition: form-data; name="...".')
    filename = parameters.get(b"filename")
    return _text(parameters[b"name"]), None if filename is None else _text(filename)


def _text(quoted: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", quoted).replace(b"%22", b'"').decode(errors="replace")
