"""Pages that a browser shows on the machine of a server without keys get nowhere with it."""

import httpx
import pytest

from llava_gateway.http.middleware.origin import _is_here

FOREIGN = "https://evil.example"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/nope", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_foreign_page_may_not_ask(http: httpx.Client, path: str, method: str) -> None:
    for origin in (FOREIGN, "null", "http://127.0.0.1:1", "https://localhost.evil.example"):
        answer = http.request(method, path, headers={"origin": origin}, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers


def test_a_name_that_leads_here_is_not_ours(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"host": "evil.example:8000", "origin": "http://evil.example:8000"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_pages_of_its_own_may_ask(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"origin": str(http.base_url).rstrip("/")}).status_code == 200


HERE = ("localhost", "localhost:8000", "LOCALHOST:1", "app.localhost:8000", "127.0.0.1", "10.0.0.1:80", "[::1]:8000", "[::1]", "")
ELSEWHERE = ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example:8000", "x/health?", "::evil")


@pytest.mark.parametrize("host", HERE)
def test_hosts_of_this_machine(host: str) -> None:
    assert _is_here(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_hosts(host: str) -> None:
    assert not _is_here(host)
