"""Which values of a Host header name this machine."""

import pytest

from llava_gateway.http.middleware.origin import _is_here

HERE = ("localhost", "localhost:8000", "LOCALHOST:1", "app.localhost:8000", "127.0.0.1", "10.0.0.1:80", "[::1]:8000", "[::1]", "")
ELSEWHERE = ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example:8000", "x/health?", "::evil")


@pytest.mark.parametrize("host", HERE)
def test_host_of_this_machine_is_recognised(host: str) -> None:
    assert _is_here(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_host_is_not_taken_for_this_machine(host: str) -> None:
    assert not _is_here(host)
