"""Each block of docs/ with Python or curl works on a gateway with the demo model, unless a line of `EXEMPT` says why not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documentation import runnable_blocks
from helpers.server import ROOT, FeedbackServer, Server

BLOCKS = list(runnable_blocks())
EXEMPT = {
    ("architecture.md", "gateway.open"): "a part of the gateway's own code",
    ("clients.md", ""): "`make test-clients` runs the recipes, with the clients that they are for",
    ("lora.md", "load_lora_adapter"): "needs an adapter in /adapters; tests/integration/api/test_lora.py sends these requests",
    ("sambastudio.md", "langchain_sambanova"): "needs an old package; tests/unit/api/sambastudio/test_langchain.py has its requests",
    ("video.md", "video_url"): "the demo model takes no videos; tests/integration/api/test_videos.py runs examples/video.py",
}
"""The blocks of a page with a text that are not run, and the reason."""
SEEN = "the top right is blue"
"""A part of the demo model's description of examples/pictures/first.png."""


def is_exempt(page: str, code: str) -> bool:
    return any(page == name and text in code for name, text in EXEMPT)


RUN = [
    pytest.param(page, language, code, id=f"{page}-{number}")
    for number, (page, language, code) in enumerate(BLOCKS)
    if not is_exempt(page, code)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a block finds the examples. curl fails there if a response has an error's status."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".curlrc").write_text("fail-with-body\n")
    return tmp_path


def run(command: list[str], code: str, url: str, folder: Path) -> str:
    """Return the output of a block for the gateway at a URL. The gateway has one port, so it is also Ollama's."""
    for documented in ("http://127.0.0.1:8000", "http://127.0.0.1:11434"):
        code = code.replace(documented, url)
    environment = os.environ | {"CURL_HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=environment, input=code)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("page", "language", "code"), RUN)
def test_block_works(server: Server, request: pytest.FixtureRequest, folder: Path, page: str, language: str, code: str) -> None:
    url = server.url
    if "/feedback" in code:
        votes: FeedbackServer = request.getfixturevalue("feedback_server")
        url = votes.server.url
        with (folder / ".curlrc").open("a") as options:
            options.write(f'header = "key: {votes.keys["alice"]}"\n')
    if "answers.jsonl" in code:
        batch = "llava-gateway batch answers.jsonl --images 'examples/pictures/*' --prompt 'Describe this image.' --temperature 0"
        run(["bash", "-euo", "pipefail"], f"{batch} --base-url http://127.0.0.1:8000/v1", url, folder)
    said = run([sys.executable, "-"] if language == "python" else ["bash", "-euo", "pipefail"], code, url, folder)
    if any(text in code for text in ("Describe this image.", SEEN, "answers.jsonl")):
        assert SEEN in said
    else:
        assert said.strip() or code.startswith("def ")


def test_exemptions_are_needed() -> None:
    for name, text in EXEMPT:
        assert any(page == name and text in code for page, _, code in BLOCKS), f"no block of {name} has {text!r}"


def test_blocks_are_found() -> None:
    assert len(RUN) >= 13
    assert {"quickstart.md", "files.md", "responses.md", "ollama.md", "tutorials/overnight.md"} <= {page for page, _, _ in BLOCKS}
