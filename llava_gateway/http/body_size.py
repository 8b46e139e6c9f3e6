"""How much memory a request takes: an upper estimate before its JSON is parsed, and a closer one of the fields that are kept.

Both count what CPython 3.11 allocates, list and dictionary tables included, and round up.
"""

import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from llava_gateway.errors import InvalidRequest
from llava_gateway.types import BodySlice

VALUE = 76
"""Bytes for a value in a list: a short string or a number (up to 64), and its places in the list and in the list's validated copy."""
FIELD = 112
"""Bytes for a key: a string of its own, and its place in a dictionary."""
OBJECT, ARRAY = 240, 96
"""Bytes for a dictionary or a list that is not empty."""
TEXT_COPIES = 2
"""Of a text, besides the parsed string: a prompt is rendered from it, a picture in it is encoded and decoded."""
MAX_VALUES = 600_000
"""Of a body. They are parsed in less than 50 ms, during which nobody else is served. 128 prompts of 4,096 token ids are 524,416 values."""
MAX_FIELDS = 150_000
"""Of a body, objects and lists among them, which take longer than other values."""
SMALL, BYTES_PER_BYTE = 4096, 128
"""Of a JSON text up to so many bytes, each is taken for so many: a closer estimate would cost as much as parsing it. (`{},` are 316.)"""
_SLICE = 1 << 20
_WIDE = bytes(range(0xF0, 0x100))
"""How characters begin in UTF-8 that CPython keeps in four bytes."""
_SCALARS = {int, float, bool, type(None)}


def parsed_size(pieces: Sequence[memoryview]) -> int:
    """Most bytes that these pieces of a JSON text take once they are parsed, whatever they hold. InvalidRequest if they hold too many
    values. Commas, colons and brackets within strings are counted like those outside."""
    text = sum(map(len, pieces))
    if text <= SMALL:
        return text * BYTES_PER_BYTE
    structure = values = fields = 0
    width = 1
    for piece in pieces:
        for start in range(0, len(piece), _SLICE):  # in slices, so that a body of commas is refused after the first
            part = bytes(piece[start : start + _SLICE + 2])  # two more, so that no escape is cut in two
            objects, arrays, commas, keys = part.count(b"{"), part.count(b"["), part.count(b","), part.count(b":")
            structure += OBJECT * objects + ARRAY * arrays + VALUE * commas + FIELD * keys
            values += commas + objects + arrays
            fields += keys + objects + arrays
            _check(values, fields)
            width = max(width, _width(part))
    return structure + text * (width + TEXT_COPIES)


def held_size(request: BaseModel) -> tuple[int, int]:
    """Bytes of the strings, lists and dictionaries in a validated request, and of the pictures that are left in its body."""
    size = images = 0
    unseen: list[Any] = [request]
    while unseen:
        value = unseen.pop()
        if isinstance(value, str):
            size += sys.getsizeof(value) + TEXT_COPIES * len(value)
        elif isinstance(value, BodySlice):
            images += len(value.ascii)
        elif isinstance(value, BaseModel):
            size += OBJECT + FIELD * len(value.__dict__)
            unseen.extend(value.__dict__.values())
        elif isinstance(value, dict):
            size += OBJECT + FIELD * len(value)
            unseen.extend(value.values())
        elif isinstance(value, list | tuple):
            size += ARRAY + VALUE * len(value)
            if not set(map(type, value)) <= _SCALARS:
                unseen.extend(value)
    return size, images


def _check(values: int, fields: int) -> None:
    if values > MAX_VALUES:
        raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")
    if fields > MAX_FIELDS:
        raise InvalidRequest(f"The body has more than {MAX_FIELDS} objects, lists and fields.")


def _width(part: bytes) -> int:
    """Bytes that CPython may take for each character of a string in this JSON text: one emoji makes a whole string four times as long."""
    if part.isascii() and b"\\u" not in part:
        return 1
    wide = len(part.translate(None, _WIDE)) < len(part) or b"\\ud" in part or b"\\uD" in part
    return 4 if wide else 2
