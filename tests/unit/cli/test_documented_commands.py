"""Each `llava-gateway` command in the documentation has flags that exist, and each Python and JSON block is valid."""

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.server import ROOT

from llava_gateway.cli import flags
from llava_gateway.cli.main import COMMANDS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:^|[ /])llava-gateway (" + "|".join(COMMANDS) + r")\b([^\n|>]*)")
VLLM_FLAGS = {"--max-model-len", "--max_model_len", "--max-num-seqs", "--tensor-parallel-size", "--limit-mm-per-prompt.image", "--dtype"}
"""vLLM's flags in the documentation. Another flag that the gateway does not know is a mistake."""


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the commands of a page, each with its arguments."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for command, arguments in COMMAND.findall(block.replace("\\\n", " ")):
            words = shlex.split(arguments.partition(" #")[0])
            found.append((command, [word for word in words if word != "&"]))
    return found


def unknown_flags(command: str, arguments: list[str]) -> list[str]:
    """Return the flags that the command does not know. Raises SystemExit if a value is wrong."""
    unknown = arguments
    if command != "serve":
        _, unknown = importlib.import_module(f"llava_gateway.cli.{command.replace('-', '_')}").make_parser().parse_known_args(arguments)
    if command in ("serve", "batch"):  # a batch passes on the flags of `serve`
        _, unknown = flags.parse(unknown)
    return [flag.partition("=")[0] for flag in unknown if flag.startswith("-")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documented_commands_have_flags_that_exist(page: Path) -> None:
    for command, arguments in commands(page):
        assert set(unknown_flags(command, arguments)) <= VLLM_FLAGS, (command, arguments)


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30


def test_misspelt_flag_is_found() -> None:
    assert unknown_flags("serve", ["llava-demo", "--max-runing", "3"]) == ["--max-runing"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documented_code_is_valid(page: Path) -> None:
    text = page.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        try:
            json.loads(block)
        except ValueError:  # several values, one on each line
            for line in block.splitlines():
                json.loads(line)
