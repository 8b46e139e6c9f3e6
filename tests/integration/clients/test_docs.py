"""The commands of the README and of the quickstart, and the examples, work on a real server. test_documented_blocks.py has the rest."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.documentation import QUICKSTART, blocks
from helpers.server import ROOT, Server

from llava_gateway.demo.images import describe

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


def test_describe_example_runs(server: Server) -> None:
    said = run(server, sys.executable, "examples/describe.py")
    assert said.startswith(describe([FIRST, SECOND]))
    assert "1152 for images" in said


def test_stream_example_runs(server: Server) -> None:
    lines = run(server, sys.executable, "examples/stream.py").splitlines()
    assert lines[0].startswith(describe([FIRST]))
    assert lines[1].startswith("Red.")


def test_deepinfra_example_runs(server: Server) -> None:
    assert run(server, sys.executable, "examples/deepinfra.py").startswith(describe([FIRST]))


def test_tagging_example_runs(server: Server) -> None:
    first, second = (line.partition(": ") for line in run(server, sys.executable, "examples/tag_folder.py").splitlines())
    assert (first[0], second[0]) == ("first.png", "second.jpg")
    assert re.findall(r"The [a-z ]+\.", first[2]) == ["The top left is red.", "The bottom right is white."]
    assert re.findall(r"The [a-z ]+\.", second[2]) == ["The top left is yellow.", "The bottom right is purple."]


def test_two_images_example_runs_in_curl(server: Server) -> None:
    completion = json.loads(run(server, "examples/two_images.sh", server.v1))
    assert completion["choices"][0]["message"]["content"] == describe([FIRST, SECOND])
    assert completion["usage"]["prompt_tokens_details"]["image_tokens"] == 1152


def test_readme_curl_request_works(server: Server) -> None:
    (script,) = (block for block in blocks("sh") if "curl" in block and "image_url" in block)
    completion = json.loads(run(server, "bash", "-euo", "pipefail", script=script.replace("http://127.0.0.1:8000", server.url)))
    assert completion["choices"][0]["message"]["content"] == describe([FIRST, SECOND])
    usage = completion["usage"]
    assert usage["prompt_tokens"] == usage["prompt_tokens_details"]["text_tokens"] + 1152
    (shown,) = map(json.loads, blocks("json"))
    del shown["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens_details"]
    assert usage == shown


def test_quickstart_shows_the_same_usage_as_the_readme() -> None:
    assert blocks("json", QUICKSTART) == blocks("json")


def test_quickstart_curl_request_for_json_works(server: Server) -> None:
    (script,) = (block for block in blocks("sh", QUICKSTART) if "json_schema" in block)
    completion = json.loads(run(server, "bash", "-euo", "pipefail", script=script.replace("http://127.0.0.1:8000", server.url)))
    assert json.loads(completion["choices"][0]["message"]["content"])["color"] in ("red", "blue")


def test_readme_python_code_works(server: Server) -> None:
    whole, streamed = blocks("python")
    said = run(server, sys.executable, "-", script=(whole + streamed).replace("http://127.0.0.1:8000", server.url))
    assert said.count("the top right is blue") == 2


def test_readme_chat_command_works(server: Server) -> None:
    (line,) = (line for block in blocks("sh") for line in block.splitlines() if "llava-gateway chat" in line)
    assert "the top left is red" in run(server, "bash", "-c", f"{line.partition('#')[0]} --temperature 0").lower()


def test_quickstart_chat_commands_work(server: Server) -> None:
    (block,) = (block for block in blocks("sh", QUICKSTART) if "llava-gateway chat" in block)
    argument, piped = (line.partition(">")[0] for line in block.splitlines() if "Describe this image." in line)
    for line in (argument, piped):
        assert "the top left is red" in run(server, "bash", "-c", f"{line} --temperature 0").lower()
