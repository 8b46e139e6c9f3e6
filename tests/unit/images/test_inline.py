"""Base64 as clients send it, well or badly."""

import binascii
from unittest.mock import patch
from urllib.parse import unquote_to_bytes

import pybase64
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.images import inline
from llava_gateway.images.inline import decode_inlined

PIECES = st.sampled_from(
    ["A", "b", "9", "+", "/", "-", "_", "=", "==", "%", "%4", "%41", "%3D", "%3d", "%0A", "%25", "%zz", " ", "\r\n", "QUFB", "é"]
)


def at_once(payload: bytes) -> bytes | None:
    """What the base64 means, all of it unquoted at once; None if it is none."""
    plain = unquote_to_bytes(payload).translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
    try:
        return pybase64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


@given(st.lists(PIECES, max_size=40).map("".join), st.integers(3, 12))
@example("%41" * 8, 3)
@example("QQ==QQ==", 4)
@example("QQ=" + "=" * 9 + "A", 4)
def test_slices_mean_what_the_whole_does(text: str, size: int) -> None:
    payload = text.encode()
    with patch.object(inline, "_SLICE", size):
        try:
            found = decode_inlined(memoryview(b"data:;base64," + payload), 1 << 20)
        except InvalidImage:
            found = None
    assert found == at_once(payload)


def test_base64_that_is_wrong_at_its_beginning_is_refused_there() -> None:
    sliced: list[bytes] = []

    def unquote(piece: bytes) -> bytes:
        sliced.append(piece)
        return unquote_to_bytes(piece)

    with patch.object(inline, "unquote_to_bytes", unquote), pytest.raises(InvalidImage):
        decode_inlined(memoryview(b"data:;base64,!" + b"%41" * 1_000_000), 20 << 20)
    assert len(sliced) == 1
