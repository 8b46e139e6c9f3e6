"""Base64 as clients send it, valid and invalid."""

import base64
import binascii
import json
from unittest.mock import patch
from urllib.parse import unquote_to_bytes

import pybase64
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llava_gateway.errors import InvalidImage
from llava_gateway.http.request_body import JsonText
from llava_gateway.images import inline
from llava_gateway.images.inline import decode_inlined
from llava_gateway.types import ImageUrl

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


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,{}",
        " \n data:image/png;base64,{} \n",
        "DATA:IMAGE/PNG;BASE64,{}",
        "data:image/png; base64,{}",
        "data:image/png;base64 ,{}",
        "data:image/png;\n base64,\n{}",
        "data:;base64,{}",
        "data: image/png;charset=utf-8;name=a%20b.png;base64,{}",
        "data:image/png;base64, {}\f",
        "data:image/png;base64,%20{}%0C",
    ],
)
@pytest.mark.parametrize("long", [False, True])
def test_white_space_that_browsers_accept_does_not_refuse_the_image(uri: str, long: bool) -> None:
    data = bytes(range(256)) * (1500 if long else 1)
    given = uri.format(base64.encodebytes(data).decode() if long else base64.b64encode(data).decode())
    found = inline.inlined(ImageUrl(JsonText(json.dumps([given]).encode()).parse()[0], ""))
    assert isinstance(found, memoryview)
    assert decode_inlined(found, 1 << 20) == data


@pytest.mark.parametrize("head", ["image/png;base65", "image/png;base64;x=y", "image/pngbase64", "base64", "image/png;base 64"])
def test_data_uri_without_base64_is_refused(head: str) -> None:
    with pytest.raises(InvalidImage):
        decode_inlined(memoryview(f"data:{head},AAAA".encode()), 100)


def test_white_space_around_a_url_does_not_refuse_the_image() -> None:
    assert inline.inlined(ImageUrl(" https://example.com/cat.png\n", "")) == "https://example.com/cat.png"
