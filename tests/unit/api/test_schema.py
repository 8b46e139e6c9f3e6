"""Values that are written differently than declared: each is taken for the value that its sender meant, or refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_gateway.api.schema import MAX_CONVERTED_LIST, RequestBody, StrictModel
from llava_gateway.errors import InvalidRequest


class Inner(StrictModel):
    flag: bool | None = None


class Body(RequestBody):
    count: int | None = None
    share: float | None = None
    flag: bool | None = None
    text: str | None = None
    inner: list[Inner] | None = None
    numbers: list[int] | None = None
    weights: dict[str, float] | None = None


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("count", "8", 8),
        ("count", "-8", -8),
        ("count", 8.0, 8),
        ("count", "8.0", 8),
        ("count", "9223372036854775807", (1 << 63) - 1),
        ("share", "0.5", 0.5),
        ("share", "1e-3", 0.001),
        ("share", "1", 1.0),
        ("share", 1, 1.0),
        ("flag", "true", True),
        ("flag", "False", False),
        ("inner", [{}, {"flag": "true"}], [Inner(), Inner(flag=True)]),
        ("numbers", ["1", 2, 3.0], [1, 2, 3]),
        ("weights", {"1": "0.5", "2": 1.5, "3": "2"}, {"1": 0.5, "2": 1.5, "3": 2.0}),
    ],
)
def test_value_in_another_notation_is_converted(field: str, value: Any, meant: Any) -> None:
    got = getattr(Body.parse({field: value}), field)
    assert got == meant
    assert type(got) is type(meant)


WRONG: dict[str, list[Any]] = {
    "count": [True, "true", 2.5, "2.5", "", " 8", "8 ", "+8", "0x8", "1_000", "٣", "08", "1" * 40, "NaN", [8]],
    "share": [True, "NaN", "Infinity", "-Infinity", "inf", "1e400", "0,5", "", ".5", "5.", "0.5 ", {}],
    "flag": [1, 0, "1", "yes", "no", "on", "", "t", "True ", 1.0],
    "text": [1, 0.5, True],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_ambiguous_value_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Body.parse({field: value})
    assert refused.value.param == field


def test_first_value_that_cannot_be_converted_is_named() -> None:
    with pytest.raises(InvalidRequest) as refused:
        Body.parse({"count": "8", "numbers": ["1", "x"], "flag": "true"})
    assert refused.value.param == "numbers[1]"


@pytest.mark.parametrize("number", [1e30, float(1 << 53), float("inf"), float("nan")])
def test_float_that_may_stand_for_another_integer_is_refused(number: float) -> None:
    with pytest.raises(InvalidRequest):
        Body.parse({"count": number})


@given(st.integers(-(1 << 70), 1 << 70))
def test_integer_in_text_is_exact(number: int) -> None:
    assert Body.parse({"count": str(number)}).count == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_in_text_is_exact(number: float) -> None:
    assert Body.parse({"share": repr(number)}).share == number


def test_long_list_is_refused_without_a_conversion() -> None:
    """Conversion takes longer than a check of types: it may not become the most expensive part of a hostile body."""
    body: dict[str, Any] = {"numbers": ["1"] * (MAX_CONVERTED_LIST + 1)}
    with pytest.raises(InvalidRequest):
        Body.parse(body)
    assert body["numbers"][0] == "1"
