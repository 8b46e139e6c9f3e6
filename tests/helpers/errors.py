"""Checks of error responses in OpenAI's shape."""

import re
from typing import Any

import httpx

LEAKS = re.compile(r"0x[0-9a-f]+|BytesIO|Traceback|site-packages|/home/|/root/|\.py\b")
"""Parts of a message that would show the server's internals."""


def refused(answer: httpx.Response, status: int, param: str | None, code: str | None = None) -> Any:
    """Return the error of a refused request, after a check of its status, shape, field and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert not LEAKS.search(answer.text)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code
    return error
