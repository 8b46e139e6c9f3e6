"""What the README says, and the examples, are true."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.field_rows import rows
from helpers.server import ROOT, Server
from pydantic import BaseModel

from llava_gateway.api.openai.messages import ImageReference
from llava_gateway.api.openai.openapi import BODIES
from llava_gateway.api.openai.sampling import JsonSchema, StreamOptions, StructuredOutputs
from llava_gateway.demo.images import describe
from llava_gateway.settings import Settings, default_of

README = (ROOT / "README.md").read_text()
OPENAI = (ROOT / "docs" / "openai.md").read_text()
FIRST = ("red", "blue", "green", "white")
SECOND = ("yellow", "black", "orange", "purple")


def run(server: Server, *command: str, script: str | None = None) -> str:
    environment = os.environ | {
        "OPENAI_BASE_URL": server.v1,
        "LLAVA_URL": server.url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment, input=script)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found


def test_example_describe(server: Server) -> None:
    said = run(server, sys.executable, "examples/describe.py")
    assert said.startswith(describe([FIRST, SECOND]))
    assert "1152 for images" in said


def test_example_stream(server: Server) -> None:
    lines = run(server, sys.executable, "examples/stream.py").splitlines()
    assert lines[0].startswith(describe([FIRST]))
    assert lines[1].startswith("Red.")


def test_example_deepinfra(server: Server) -> None:
    assert run(server, sys.executable, "examples/deepinfra.py").startswith(describe([FIRST]))


def test_example_two_images_by_curl(server: Server) -> None:
    completion = json.loads(run(server, "examples/two_images.sh", server.v1))
    assert completion["choices"][0]["message"]["content"] == describe([FIRST, SECOND])
    assert completion["usage"]["prompt_tokens_details"]["image_tokens"] == 1152


def test_readme_curl(server: Server) -> None:
    (script,) = (block for block in blocks("sh") if "curl" in block and "image_url" in block)
    completion = json.loads(run(server, "bash", "-euo", "pipefail", script=script.replace("http://127.0.0.1:8000", server.url)))
    assert completion["choices"][0]["message"]["content"] == describe([FIRST, SECOND])
    usage = completion["usage"]
    assert usage["prompt_tokens"] == usage["prompt_tokens_details"]["text_tokens"] + 1152
    (shown,) = map(json.loads, blocks("json"))
    del shown["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens_details"]
    assert usage == shown


def test_readme_curl_for_json(server: Server) -> None:
    (script,) = (block for block in blocks("sh") if "json_schema" in block)
    completion = json.loads(run(server, "bash", "-euo", "pipefail", script=script.replace("http://127.0.0.1:8000", server.url)))
    assert json.loads(completion["choices"][0]["message"]["content"])["color"] in ("red", "blue")


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0][:40])
def test_readme_python(server: Server, block: str) -> None:
    said = run(server, sys.executable, "-", script=block.replace("http://127.0.0.1:8000", server.url))
    assert "the top right is blue" in said


def test_readme_chat_in_the_terminal(server: Server) -> None:
    (block,) = (block for block in blocks("sh") if "llava-gateway chat" in block)
    argument, piped = (line.partition(">")[0] for line in block.splitlines() if "Describe this image." in line)
    for line in (argument, piped):
        assert "the top left is red" in run(server, "bash", "-c", f"{line} --temperature 0").lower()


def test_readme_lists_every_setting_as_it_is() -> None:
    for name, field in Settings.model_fields.items():
        default = f"`{default_of(name)}`" if default_of(name) else ""
        row = f"| `--{name.replace('_', '-')}` | {default} | {field.description} |"
        assert row in README, row


@pytest.mark.parametrize("model", [*BODIES, StreamOptions, JsonSchema, StructuredOutputs, ImageReference])
def test_docs_say_what_is_done_with_every_field(model: type[BaseModel]) -> None:
    for row in rows(model):
        assert row in OPENAI, row


def test_docs_name_no_field_that_is_gone() -> None:
    named = set(re.findall(r"^\| `([a-z_]+)` \| (?:honoured|ignored|refused) \|", OPENAI, re.MULTILINE))
    declared = {
        row.split("`")[1] for model in (*BODIES, StreamOptions, JsonSchema, StructuredOutputs, ImageReference) for row in rows(model)
    }
    assert named == declared


def test_docs_name_every_code_of_an_error() -> None:
    package = ROOT / "llava_gateway"
    codes = {code for path in package.rglob("*.py") for code in re.findall(r'\bcode ?= ?"(\w+)"', path.read_text())}
    assert len(codes) > 20
    documents = OPENAI + (ROOT / "docs" / "reliability.md").read_text()
    assert {code for code in codes if f"`{code}`" not in documents} == set()


def test_readme_names_real_make_targets_and_files() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in "".join(blocks("sh")).splitlines():
        words = shlex.split(line.split("#")[0]) if line.startswith("make ") else []
        if words:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
