"""Base64 as clients send it, valid and invalid."""

import binascii
from unittest.mock import patch
from urllib.parse import unquote_to_bytes

import pybase64
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.images import inline
from llava_gateway.images.inline import decode_inlined

NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine an example may take longer than Hypothesis allows by default."""
PIECES = st.sampled_from(
    ["A", "b", "9", "+", "/", "-", "_", "=", "==", "%", "%4", "%41", "%3D", "%3d", "%0A", "%25", "%zz", " ", "\r\n", "QUFB", "é"]
)


def decode_whole(payload: bytes) -> bytes | None:
    """Return the bytes of the base64, decoded as a whole, or None if the base64 is not valid."""
    plain = unquote_to_bytes(payload).translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
    try:
        return pybase64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


@NO_DEADLINE
@given(st.lists(PIECES, max_size=40).map("".join), st.integers(3, 12))
@example("%41" * 8, 3)
@example("QQ==QQ==", 4)
@example("QQ=" + "=" * 9 + "A", 4)
def test_decoding_in_slices_gives_the_same_bytes_as_decoding_the_whole(text: str, size: int) -> None:
    payload = text.encode()
    with patch.object(inline, "_SLICE", size):
        try:
            found = decode_inlined(memoryview(b"data:;base64," + payload), 1 << 20)
        except InvalidImage:
            found = None
    assert found == decode_whole(payload)


def test_base64_with_an_error_in_the_first_slice_is_not_decoded_to_its_end() -> None:
    sliced: list[bytes] = []

    def unquote(piece: bytes) -> bytes:
        sliced.append(piece)
        return unquote_to_bytes(piece)

    with patch.object(inline, "unquote_to_bytes", unquote), pytest.raises(InvalidImage):
        decode_inlined(memoryview(b"data:;base64,!" + b"%41" * 1_000_000), 20 << 20)
    assert len(sliced) == 1
