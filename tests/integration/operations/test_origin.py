"""A page from another site cannot use a server that has no keys."""

import httpx
import pytest

FOREIGN = "https://evil.example"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/nope", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_foreign_page_is_refused(http: httpx.Client, path: str, method: str) -> None:
    for origin in (FOREIGN, "null", "http://127.0.0.1:1", "https://localhost.evil.example"):
        answer = http.request(method, path, headers={"origin": origin}, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers


def test_foreign_host_name_is_refused(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"host": "evil.example:8000", "origin": "http://evil.example:8000"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_own_page_is_accepted(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"origin": str(http.base_url).rstrip("/")}).status_code == 200
