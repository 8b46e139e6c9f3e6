"""Bodies whose long pictures are left where they are mean what they meant."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.chat import InPlace
from llava_gateway.errors import InvalidRequest
from llava_gateway.web import json as web_json
from llava_gateway.web.json import LONG, loads

URI = "data:image/png;base64," + "A" * LONG


def plain(value: Any) -> Any:
    """What is in place, as the strings that they stand for."""
    if isinstance(value, InPlace):
        return bytes(value.ascii).decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_long_pictures_stay_in_the_body() -> None:
    body = orjson.dumps({"a": [URI, {"b": "B" * LONG}], "c": "data:short", "d": "long text " * LONG, "A" * LONG: 1})
    value = loads(body)
    assert isinstance(value["a"][0], InPlace)
    assert isinstance(value["a"][1]["b"], InPlace)
    assert value["a"][0].ascii.obj is body
    assert plain(value) == orjson.loads(body)
    assert isinstance(loads(orjson.dumps(URI)), InPlace)


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
def test_documents(document: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_json, "LONG", 18)
        assert plain(loads(json.dumps(document).encode())) == document


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text(text: str) -> None:
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


def test_bodies_of_very_many_values_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="values"):
        loads(b"[" + b"1," * (1 << 22) + b"1]")
