"""Bodies whose long pictures are left where they are mean what they meant."""

import json
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llava_gateway.errors import InvalidRequest
from llava_gateway.http import request_body as web_json
from llava_gateway.http.body_size import validated_size
from llava_gateway.http.request_body import LONG, MAX_TEXT, JsonText, loads
from llava_gateway.types import BodySlice

URI = "data:image/png;base64," + "A" * LONG


def plain(value: Any) -> Any:
    """What is in place, as the strings that they stand for."""
    if isinstance(value, BodySlice):
        return bytes(value.ascii).decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_long_base64_is_not_copied_out_of_the_body() -> None:
    body = orjson.dumps({"a": [URI, {"b": "B" * LONG}], "c": "data:short", "d": "long text " * LONG, "A" * LONG: 1})
    value = loads(body)
    assert isinstance(value["a"][0], BodySlice)
    assert isinstance(value["a"][1]["b"], BodySlice)
    assert value["a"][0].ascii.obj is body
    assert plain(value) == orjson.loads(body)
    assert isinstance(loads(orjson.dumps(URI)), BodySlice)


PIECES = st.sampled_from(
    [
        '"',
        "\\",
        '"data:',
        "data:",
        "A" * 20,
        ",",
        ":",
        "{",
        "}",
        "[",
        "]",
        " ",
        '"data:,' + "B" * 20 + '"',
        '"' + "C" * 20 + '"',
        "\\u0041",
        "1",
    ]
)
DOCUMENTS = st.recursive(
    st.none()
    | st.integers(-5, 5)
    | st.text(max_size=12)
    | st.sampled_from(
        ["A" * 20, "data:," + "A" * 20, 'say "data:,' + "A" * 20, 'say "' + "A" * 20, "\\data:," + "A" * 20, "A" * 20 + '" said he']
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.just("K" * 20), inner, max_size=4),
)


@given(DOCUMENTS)
def test_document_parses_like_plain_json(document: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_json, "LONG", 18)
        assert plain(loads(json.dumps(document).encode())) == document


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_parses_like_plain_json_or_is_refused(text: str) -> None:
    """What is no JSON does not become it, and what is means the same."""
    body = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_json, "LONG", 18)
        try:
            expected = orjson.loads(body)
        except orjson.JSONDecodeError:
            with pytest.raises(InvalidRequest):
                loads(body)
        else:
            assert plain(loads(body)) == expected


@pytest.mark.parametrize("value", ["1,", "{},", "[],", '"a":1,', '{"a":1},'])
def test_body_with_too_many_values_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"more than \d+ (values|objects, lists and fields)"):
        loads(b"[" + value.encode() * (1 << 20) + b"1]")


def test_largest_list_of_token_ids_is_accepted() -> None:
    assert len(loads(orjson.dumps([[1] * 4096] * 128))) == 128


def test_text_longer_than_any_prompt_is_refused_before_parsing() -> None:
    for text in ("some text " * MAX_TEXT, "😀" * MAX_TEXT, "a text\\n" * MAX_TEXT):
        with pytest.raises(InvalidRequest, match=f"text of more than {MAX_TEXT} bytes"):
            loads(orjson.dumps({"text": text}))
        assert JsonText(orjson.dumps({"text": text}), max_text=None).parse() == {"text": text}


def test_json_between_two_texts_is_not_taken_for_a_text() -> None:
    between = orjson.dumps({"prompt": [[123456789] * 5000] * 100, "model": "m"})
    assert len(between) > MAX_TEXT
    assert loads(between)["model"] == "m"
    assert loads(b'{"a":1' + b" " * 2 * MAX_TEXT + b',"b":2}') == {"a": 1, "b": 2}


def test_long_base64_with_white_space_or_escapes_is_accepted() -> None:
    lines = "QUFB" * 19 + "\r\n"
    escaped = "data:image/png;base64," + "%41" * MAX_TEXT
    value = loads(orjson.dumps({"a": lines * (MAX_TEXT // 70), "b": escaped}))
    assert value["a"] == lines * (MAX_TEXT // 70)
    assert bytes(value["b"].ascii).decode() == escaped


def test_picture_in_json_inside_a_string_is_not_refused_as_a_long_text() -> None:
    """SambaStudio's conversations are JSON in a string."""
    conversation = json.dumps({"url": "data:image/png;base64," + "A" * MAX_TEXT})
    assert plain(loads(loads(orjson.dumps([conversation]))[0].encode())) == json.loads(conversation)


@pytest.mark.parametrize("size", [1000, 2 * LONG, 2 * MAX_TEXT])
@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_base64_in_lines_is_treated_alike_in_every_size(start: str, size: int) -> None:
    """A shell's `base64` writes lines. Escaped line breaks are accepted, and raw ones get an advice."""
    lines = start + ("A" * 76 + "\r\n") * (size // 78)
    assert plain(loads(orjson.dumps({"image": lines}))) == {"image": lines}
    for raw in (lines, lines.replace("\r", "")):
        with pytest.raises(InvalidRequest, match=r"not valid JSON: .* \(`base64 -w0`\)\.$"):
            loads(b'{"image": "' + raw.encode() + b'"}')


def built(value: Any) -> int:
    """Bytes that CPython takes for a value, strings and numbers that it shares counted each time."""
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(built(key) + built(item) for key, item in value.items())
    return size + (sum(map(built, value)) if isinstance(value, list) else 0)


@given(st.lists(DOCUMENTS | st.text() | st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.booleans())
def test_parsing_takes_no_more_memory_than_reserved(documents: list[Any], ascii_only: bool) -> None:
    body = json.dumps({"a": documents * 20}, ensure_ascii=ascii_only, separators=(",", ":")).encode(errors="replace")
    text = JsonText(body)
    # What CPython shares (the empty string, single characters, small numbers) and rounds is in this.
    assert built(text.parse()) <= text.parsed_size + 1000


class Held(BaseModel):
    value: Any


@given(DOCUMENTS)
def test_memory_of_a_parsed_request_is_counted(document: Any) -> None:
    loaded = [loads(json.dumps([document, "x" * 100]).encode()) for _ in range(10)]
    assert validated_size(Held(value=loaded))[0] >= built(loaded)
