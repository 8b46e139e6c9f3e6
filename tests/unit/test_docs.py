"""The README and the documentation name every setting, field, error code and make target."""

import re
import shlex

import pytest
from helpers.documentation import OPENAI_BODIES, README, blocks, rows
from helpers.server import ROOT
from pydantic import BaseModel

from llava_gateway.api.openai.function_tools import FunctionDefinition
from llava_gateway.api.openai.messages import ImageReference
from llava_gateway.api.openai.responses.request import TextConfig
from llava_gateway.api.openai.sampling import JsonSchema, StreamOptions, StructuredOutputs
from llava_gateway.settings import Settings, default_of

OPENAI = "".join((ROOT / "docs" / name).read_text() for name in ("openai.md", "responses.md", "decisions.md"))


def test_documentation_lists_every_setting() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        default = f"`{default_of(name)}`" if default_of(name) else ""
        row = f"| `--{name.replace('_', '-')}` | {default} | {field.description} |"
        assert row in page, row


@pytest.mark.parametrize(
    "model", [*OPENAI_BODIES, StreamOptions, JsonSchema, StructuredOutputs, ImageReference, FunctionDefinition, TextConfig]
)
def test_documentation_describes_every_field(model: type[BaseModel]) -> None:
    for row in rows(model):
        assert row in OPENAI, row


def test_documentation_names_no_removed_field() -> None:
    named = set(re.findall(r"^\| `([a-z_]+)` \| (?:honoured|ignored|refused) \|", OPENAI, re.MULTILINE))
    models: tuple[type[BaseModel], ...] = (
        *OPENAI_BODIES,
        StreamOptions,
        JsonSchema,
        StructuredOutputs,
        ImageReference,
        FunctionDefinition,
        TextConfig,
    )
    declared = {row.split("`")[1] for model in models for row in rows(model)}
    assert named == declared


def test_documentation_names_every_error_code() -> None:
    package = ROOT / "llava_gateway"
    codes = {code for path in package.rglob("*.py") for code in re.findall(r'\bcode ?= ?"(\w+)"', path.read_text())}
    assert len(codes) > 20
    documents = OPENAI + (ROOT / "docs" / "reliability.md").read_text()
    assert {code for code in codes if f"`{code}`" not in documents} == set()


def test_readme_names_existing_make_targets_and_files() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in "".join(blocks("sh")).splitlines():
        words = shlex.split(line.split("#")[0]) if line.startswith("make ") else []
        if words:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_troubleshooting_quotes_real_messages() -> None:
    """Each heading below a group of troubleshooting.md is a part of a text in the code, with `...` for a variable part."""
    code = "".join(path.read_text() for path in (ROOT / "llava_gateway").rglob("*.py"))
    texts = re.sub(r'"\s*\n\s*f?"', "", code)  # a message may continue on the next line
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 10
    for heading in headings:
        for part in heading.split("..."):
            assert part.strip() in texts, heading


def test_readme_fits_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 150
