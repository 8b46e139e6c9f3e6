"""Estimates of the memory that a request takes: an upper bound before its JSON is parsed, and a closer estimate after its validation.

Both count the memory that CPython 3.11 allocates, with the tables of lists and dictionaries, and round up.
"""

import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from llava_gateway.errors import InvalidRequest
from llava_gateway.types import BodySlice

VALUE = 76
"""Bytes for a value in a list: up to 64 for a number or a short string, and its pointers in the list and in the list's validated copy."""
FIELD = 112
"""Bytes for a key in a dictionary: its string, and its entry in the dictionary's table."""
OBJECT, ARRAY = 240, 96
"""Bytes for a dictionary and for a list that are not empty."""
TEXT_COPIES = 2
"""Copies of a text beside the parsed string: a prompt is rendered from it, or an image in it is encoded and decoded."""
MAX_VALUES = 600_000
"""The upper bound of values in a body. They are parsed in less than 50 ms, during which no other request is served. 128 prompts of 4,096
token ids are 524,416 values."""
MAX_FIELDS = 150_000
"""The upper bound of fields, objects and lists in a body. They take longer to parse than other values."""
SMALL, BYTES_PER_BYTE = 4096, 128
"""A JSON text of up to `SMALL` bytes is estimated at `BYTES_PER_BYTE` for each of its bytes: a closer estimate would cost as much as
parsing the text. (`{},` takes 316 bytes.)"""
_SLICE = 1 << 20
_FOUR_BYTE_LEADS = bytes(range(0xF0, 0x100))
"""The first bytes of UTF-8 characters that CPython stores in four bytes each."""
_SCALARS = {int, float, bool, type(None)}


def parsed_size(pieces: Sequence[memoryview]) -> int:
    """Return an upper bound of the memory that the pieces of a JSON text take once they are parsed, in bytes.

    Commas, colons and brackets within strings are counted like those outside. Raises InvalidRequest for too many values.
    """
    text_bytes = sum(map(len, pieces))
    if text_bytes <= SMALL:
        return text_bytes * BYTES_PER_BYTE
    structure = values = fields = 0
    char_width = 1
    for piece in pieces:
        for start in range(0, len(piece), _SLICE):  # in slices, so that a body of commas is refused after the first slice
            part = bytes(piece[start : start + _SLICE + 2])  # two bytes of the next slice, so that `\ud` is not cut in two
            objects, arrays, commas, keys = part.count(b"{"), part.count(b"["), part.count(b","), part.count(b":")
            structure += OBJECT * objects + ARRAY * arrays + VALUE * commas + FIELD * keys
            values += commas + objects + arrays
            fields += keys + objects + arrays
            _check(values, fields)
            char_width = max(char_width, _char_width(part))
    return structure + text_bytes * (char_width + TEXT_COPIES)


def validated_size(request: BaseModel) -> tuple[int, int]:
    """Return the memory of the strings, lists and dictionaries in a validated request, and the size of its images that stay in the body.

    Both are in bytes.
    """
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


def _char_width(part: bytes) -> int:
    """Return an upper bound of the bytes per character of the strings in a JSON text, as CPython stores them.

    A single emoji in a string makes every character of that string take four bytes.
    """
    if part.isascii() and b"\\u" not in part:
        return 1
    is_wide = len(part.translate(None, _FOUR_BYTE_LEADS)) < len(part) or b"\\ud" in part or b"\\uD" in part
    return 4 if is_wide else 2
