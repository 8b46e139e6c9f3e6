"""The README, the field tables of docs/ as the code declares them, the OpenAPI document, and runs of the examples."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.requests import MODEL
from helpers.server import ROOT, Server
from pydantic import BaseModel
from starlette.testclient import TestClient

from llava_gateway import create_app
from llava_gateway.api.openai.chat_request import ChatCompletionRequest
from llava_gateway.api.openai.completion_request import TextCompletionRequest
from llava_gateway.api.openai.decision_request import DecisionRequest
from llava_gateway.api.openai.responses.request import CreateResponse
from llava_gateway.api.openai.tokenization import DetokenizeRequest, TokenizeRequest
from llava_gateway.api.schema import RequestBody
from llava_gateway.settings import Settings

README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
OPENAI_BODIES: tuple[type[RequestBody], ...] = (
    ChatCompletionRequest,
    TextCompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    CreateResponse,
    DecisionRequest,
)
"""The bodies in docs/openai.md and docs/responses.md."""


def blocks(language: str, page: str = README) -> list[str]:
    """Return a page's code blocks in a language."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found
    return found


def runnable_blocks() -> Iterator[tuple[str, str, str]]:
    """Yield the page below docs/, the language and the code of each block that talks to a gateway, or runs in Python."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.relative_to(ROOT / "docs").as_posix()
        for language, code in re.findall(
            r"^ *```(python|sh|bash|console|shell)\b[^\n]*\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE
        ):
            if language == "python" or re.search(r"\bcurl\b", code):
                yield page, language, code


def rows(model: type[BaseModel]) -> Iterator[str]:
    """Yield the rows that the table of a request body has in docs/: name, what is done with the field, description."""
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} says nothing"
        says = field.description
        do = "ignored" if says.startswith("ignored: ") else "honoured"
        yield f"| `{field.alias or name}` | {do} | {says.removeprefix('ignored: ')} |"
    if issubclass(model, RequestBody):
        for name, reason in model.ignored.items():
            yield f"| `{name}` | ignored | {reason} |"
        for name, refused in model.refused.items():
            yield f"| `{name}` | refused | {refused.reason} |"


def openapi(**settings: Any) -> Any:
    """Return the OpenAPI document of a server with these settings."""
    app = create_app(Settings(model=MODEL, **settings), engine=lambda: pytest.fail("the test starts no engine"))
    key = {"authorization": f"Bearer {settings['api_keys'][0]}"} if "api_keys" in settings else {}
    return TestClient(app, base_url="http://127.0.0.1").get("/openapi.json", headers=key).json()


def run_example(server: Server, name: str) -> list[str]:
    """Return the lines that an example of examples/ prints with this server."""
    command = [sys.executable, f"examples/{name}"]
    environment = os.environ | {"LLAVA_URL": server.url}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def recipes() -> dict[str, tuple[str, str]]:
    """Return the language and the code of each recipe of docs/clients.md, by the heading of its section."""
    sections = (ROOT / "docs" / "clients.md").read_text().split("\n## ")[1:]
    found = {section.partition("\n")[0]: re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL) for section in sections}
    assert all(len(section_blocks) == 1 for section_blocks in found.values()), "each section has one recipe"
    return {heading: section_blocks[0] for heading, section_blocks in found.items()}
