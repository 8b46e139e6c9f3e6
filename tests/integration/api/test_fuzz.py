"""Generated requests never get a 5xx, a hang or a response of a wrong shape, and a valid request after each test works."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from helpers.conformance import ENGINE_PATHS, check_conformance
from helpers.contract import check
from helpers.documentation import OPENAI_BODIES, openapi
from helpers.requests import MODEL, body, image
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llava_gateway.demo.images import describe

GRID = ("red", "blue", "green", "orange")
IMAGE = image(GRID)
BATCH = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),
)

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
texts = st.text(max_size=30) | st.sampled_from(["Hello", "<image>", "</s>", "\ufdd0", "Describe these images."])
text_parts = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
detail = st.sampled_from(["auto", "low", "high", None])
image_parts = st.builds(
    lambda detail: {"type": "image_url", "image_url": IMAGE["image_url"] | {"detail": detail}, "uuid": "x"},
    detail,
)
content = texts.filter(bool) | st.lists(text_parts | image_parts, min_size=1, max_size=3)
messages = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": content})
    | st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "assistant"]), "content": texts}, optional={"name": texts}),
    min_size=1,
    max_size=3,
)
token_ids = st.integers(0, 639)
VALID = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.001, 1),
    "n": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(min_size=1, max_size=5) | st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 100),
    "logit_bias": st.dictionaries(token_ids.map(str), st.floats(-100, 100), max_size=5),
    "top_k": st.integers(-1, 2**31 - 1),
    "min_p": st.floats(0, 1),
    "min_tokens": st.integers(0, 5),
    "stop_token_ids": st.lists(token_ids, max_size=3),
    "allowed_token_ids": st.lists(token_ids, min_size=1, max_size=5),
    "bad_words": st.lists(st.sampled_from(["a", "small", "🦙", "x y"]), max_size=3),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "spaces_between_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "logprobs": st.just(True),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "cache_salt": st.text(min_size=1, max_size=128),
    "stream": st.booleans(),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "user": junk,
    "metadata": junk,
    "a field of tomorrow": junk,
}
valid_requests = st.fixed_dictionaries(
    {"model": st.just(MODEL), "messages": messages, "max_tokens": st.integers(5, 8)},
    optional={name: st.none() | values for name, values in VALID.items()},
).filter(lambda request: not (request.get("response_format") and (request.get("ignore_eos") or request.get("min_tokens"))))


@pytest.fixture(autouse=True)
def a_valid_request_follows(http: httpx.Client) -> Iterator[None]:
    yield
    answer = http.post("/v1/chat/completions", json=body(image(GRID), "Describe this image."), timeout=120)
    assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])


@pytest.mark.slow
@BATCH
@given(request=valid_requests)
def test_generated_valid_request_is_answered(http: httpx.Client, request: dict[str, Any]) -> None:
    answer = http.post("/v1/chat/completions", json=request)
    if '"error"' in answer.text:  # the only contradiction among valid fields: the tokens of the structured output are banned
        assert '"param":"response_format"' in answer.text
        assert request["response_format"] == {"type": "json_object"}
        assert request.keys() & {"allowed_token_ids", "bad_words", "logit_bias"}
    else:
        assert answer.status_code == 200


names = st.sampled_from(sorted({name for model in OPENAI_BODIES for name in model.model_fields} | {"role", "content", "type"}))


@BATCH
@given(
    request=valid_requests, path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]), data=st.data()
)
@pytest.mark.slow
def test_spoilt_request_never_gets_a_5xx(http: httpx.Client, request: dict[str, Any], path: str, data: st.DataObject) -> None:
    spoilt = request | {data.draw(names): data.draw(junk) for _ in range(data.draw(st.integers(1, 2)))}
    if isinstance(spoilt.get("max_tokens"), int) and spoilt["max_tokens"] > 50:
        spoilt["max_tokens"] = 50  # an answer of thousands of tokens would be correct but slow
    answer = http.post(path, json=spoilt | {"max_completion_tokens": spoilt.get("max_completion_tokens") or 8})
    assert answer.status_code < 500, (spoilt, answer.text)


@BATCH
@given(request=junk, path=st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/completions", "/tokenize", "/detokenize"]))
def test_random_json_gets_a_4xx(http: httpx.Client, request: Any, path: str) -> None:
    assert 400 <= http.post(path, json=request).status_code < 500


@BATCH
@given(content=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data", ""]))
def test_random_bytes_get_a_4xx(http: httpx.Client, content: bytes, kind: str) -> None:
    assert 400 <= http.post("/v1/chat/completions", content=content, headers={"content-type": kind}).status_code < 500


@BATCH
@given(path=st.text(max_size=30), method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]))
def test_random_path_never_gets_a_5xx(http: httpx.Client, path: str, method: str) -> None:
    assert http.request(method, "/" + quote(path)).status_code < 500


document = schemathesis.openapi.from_dict(openapi()).include(path=list(ENGINE_PATHS))


@pytest.mark.slow
@document.parametrize()
@settings(BATCH, max_examples=10)
def test_openapi_document_matches_the_responses(case: Any, http: httpx.Client) -> None:
    """Responses have the documented statuses, types and shapes, and requests that the document forbids are refused."""
    if isinstance(case.body, dict) and case.path.startswith("/v1/"):
        case.body.setdefault("max_tokens", 4)
        for name in ("max_tokens", "max_completion_tokens", "n"):  # thousands of tokens would be correct but slow
            if isinstance(value := case.body.get(name), int) and (name != "n" or value <= 128):
                case.body[name] = min(value, 8)
        if case.body.get("stream") is True:  # schemathesis reads the first events only; other tests check streams
            case.body["stream"] = False
    response = case.call(base_url=str(http.base_url), timeout=120)
    check(
        case.method,
        case.formatted_path,
        response.status_code,
        httpx.Headers({name: values[0] for name, values in response.headers.items()}),
        response.content,
    )
    check_conformance(case, response)


def test_documentation_page_names_every_field(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert 'src="' not in page.text
    for model in OPENAI_BODIES:
        for name in (*model.refused, *model.ignored):
            assert f"<code>{name}</code>" in page.text
    assert http.get("/openapi.json").json() == openapi()
    served = set(openapi()["paths"])
    assert served >= set(ENGINE_PATHS)
