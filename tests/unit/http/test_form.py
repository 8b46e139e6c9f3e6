"""Forms: what SDKs send is read byte for byte, and hostile forms are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.errors import GatewayError, InvalidRequest, UnsupportedMediaType
from llava_gateway.http.form import MAX_FIELDS, MAX_HEAD, FormField, form_boundary, parse_form

HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters='"\\%'), min_size=1, max_size=20)


def encode(fields: dict[str, FormField], boundary: bytes) -> bytes:
    parts = b""
    for name, field in fields.items():
        filename = b"" if field.filename is None else b'; filename="' + field.filename.encode() + b'"'
        head = b'Content-Disposition: form-data; name="' + name.encode() + b'"' + filename
        parts += b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + field.data + b"\r\n"
    return parts + b"--" + boundary + b"--\r\n"


@given(st.dictionaries(NAMES, st.builds(FormField, st.binary(max_size=200), st.none() | NAMES), max_size=MAX_FIELDS))
def test_fields_are_read_as_they_were_sent(fields: dict[str, FormField]) -> None:
    assert parse_form(encode(fields, b"a boundary of 32 characters"), b"a boundary of 32 characters") == fields


@given(st.lists(st.sampled_from([b"--b", b"\r\n", b"--", HEAD, b"b", b'content-disposition: form-data; name="x"', b"\0"]), max_size=30))
def test_any_form_is_read_or_refused(pieces: list[bytes]) -> None:
    try:
        fields = parse_form(b"".join(pieces), b"b")
    except InvalidRequest:
        return
    assert len(fields) <= MAX_FIELDS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        HEAD + b"data",  # truncated
        HEAD + b"data\r\n--b",
        HEAD + b"data\r\n--bb--",
        b"--b\r\n\r\ndata\r\n--b--",
        b"--b\r\nContent-Type: image/png\r\n\r\ndata\r\n--b--",
        b'--b\r\ncontent-disposition: form-data; name="' + b"x" * MAX_HEAD + b'"\r\n\r\n\r\n--b--',
        (HEAD + b"data\r\n") * (MAX_FIELDS + 1) + b"--b--",
        b"\r\n" * 100_000,
    ],
    ids=range(10),
)
def test_broken_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_form(body, b"b")


def test_nested_form_stays_the_content_of_its_field() -> None:
    inner = b'--c\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--c--'
    assert parse_form(HEAD + inner + b"\r\n--b--", b"b") == {"file": FormField(inner, "a.png")}


def test_first_field_of_a_name_counts() -> None:
    assert parse_form(HEAD + b"1\r\n" + HEAD + b"2\r\n--b--", b"b")["file"].data == b"1"


@pytest.mark.parametrize(
    ("header", "boundary"),
    [("multipart/form-data; boundary=abc", b"abc"), ('Multipart/Form-Data; charset=utf-8; Boundary="a b"', b"a b")],
)
def test_boundary_is_found(header: str, boundary: bytes) -> None:
    assert form_boundary(header) == boundary


@pytest.mark.parametrize(
    "header", ["", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=a", "application/json"]
)
def test_body_without_a_boundary_is_refused(header: str) -> None:
    with pytest.raises(GatewayError) as refusal:
        form_boundary(header)
    assert isinstance(refusal.value, (InvalidRequest, UnsupportedMediaType))
