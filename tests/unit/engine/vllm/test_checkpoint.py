"""A model that cannot be served is refused at once, with one line that gives the reason and the remedy."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.server import free_port

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.checkpoint import check_checkpoint, check_quantization
from llava_gateway.engine.vllm.launch import engine_arguments
from llava_gateway.errors import EngineStartError

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
ON_CPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="is about the limits of a CPU")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))


def refusal(model: Path | str, *flags: str) -> str:
    with pytest.raises(EngineStartError) as refused:
        check_checkpoint(str(model), flags)
    message = str(refused.value)
    assert "\n" not in message
    return message


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def change_both(directory: Path, config: dict[str, Any], preprocessor_config: dict[str, Any]) -> None:
    change(directory / "config.json", **config)
    change(directory / "preprocessor_config.json", **preprocessor_config)


def index(directory: Path, name: str) -> None:
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


def remove_all(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (remove_all, ("config.json is missing",)),
    "cut config": (lambda at: (at / "config.json").write_text('{"model'), ("config.json", "not valid JSON")),
    "a list for a config": (lambda at: (at / "config.json").write_text("[]"), ("config.json", "not a JSON object")),
    "text only": (
        lambda at: (at / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}'),
        ("llama", "sees no images", "llava_next"),
    ),
    "another kind": (lambda at: change(at / "config.json", model_type="qwen2_vl"), ("type qwen2_vl;", "llava_onevision")),
    "no tower": (lambda at: change(at / "config.json", vision_config=None), ("has the vision tower None",)),
    "no video processor": (
        lambda at: change_both(at, {"model_type": "llava_next_video"}, {"image_processor_type": "LlavaNextImageProcessor"}),
        ("video_preprocessor_config.json is missing", "LlavaNextVideoVideoProcessor"),
    ),
    "another tower": (
        lambda at: change(at / "config.json", vision_config={"model_type": "pixtral"}),
        ("pixtral", "clip_vision_model and siglip_vision_model"),
    ),
    "original": (
        lambda at: (at / "config.json").write_text('{"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}'),
        ("original LLaVA checkpoint", "`llava-gateway convert "),
    ),
    "no tokenizer": (lambda at: remove(at, "tokenizer.json"), ("tokenizer.json is missing",)),
    "no processor": (
        lambda at: remove(at, "preprocessor_config.json"),
        ("preprocessor_config.json is missing",),
    ),
    "cut tokenizer": (lambda at: (at / "tokenizer.json").write_text('{"a":'), ("tokenizer.json", "not valid JSON")),
    "cut processor": (lambda at: (at / "preprocessor_config.json").write_text("{"), ("preprocessor_config.json", "not valid JSON")),
    "no weights": (lambda at: remove(at, WEIGHTS), ("no weights",)),
    "a shard less": (lambda at: index(at, "model-00002-of-00002.safetensors"), ("model-00002-of-00002.safetensors is missing",)),
    "cut weights": (
        lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:100_000]),
        (f"{WEIGHTS} is damaged or cut short", "download it again"),
    ),
    "no safetensors": (lambda at: (at / WEIGHTS).write_bytes(b"<html>404</html>"), (f"{WEIGHTS} is damaged",)),
    "git-lfs": (lambda at: (at / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), ("git lfs pull",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint_is_refused_with_its_fault(name: str, checkpoint: Path) -> None:
    damage, words = BROKEN[name]
    damage(checkpoint)
    message = refusal(checkpoint)
    assert str(checkpoint) in message
    assert all(word in message for word in words), message


def test_whole_checkpoint_passes(checkpoint: Path) -> None:
    assert check_checkpoint(str(checkpoint), ())["model_type"] == "llava"
    remove(checkpoint, "tokenizer.json")
    check_checkpoint(str(checkpoint), ("--tokenizer=elsewhere",))
    remove(checkpoint, WEIGHTS)
    check_checkpoint(str(checkpoint), ("--tokenizer", "elsewhere", "--load_format", "dummy"))


@pytest.mark.parametrize("model", ["/no-such-folder/llava", "./no-such-folder/llava", "../no-such-folder"])
def test_missing_directory_is_not_taken_for_a_name_on_the_hub(model: str) -> None:
    assert refusal(model) == f"there is no directory {model}"


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Start a server like the Hugging Face Hub, with a gated, an original and a missing model. Return its URL."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, error = (
                (403, "GatedRepo") if "/some/gated/" in self.path else (200, "") if "/liuhaotian/" in self.path else (401, "RepoNotFound")
            )
            body = json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"} if status == 200 else {"error": error}).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), "X-Error-Code": error, "ETag": '"1"', "X-Repo-Commit": "0" * 40}.items():
                if value:
                    self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def last_error(folder: Path, model: str, *flags: str, **environment: str) -> str:
    """Run `serve`, which must end by itself with status 1 and without a traceback. Return the reason that it has logged."""
    command = [sys.executable, "-m", "llava_gateway", "serve", model, "--port", str(free_port()), *flags]
    surroundings = os.environ | {"HF_HOME": str(folder)} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=surroundings, cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "ERROR" in line)
    return line.partition("The model did not load: ")[2]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("some/gated", ("some/gated is gated", "accept its terms", "HF_TOKEN")),
        ("some/typo", ("no directory some/typo here", "no such model on the Hugging Face Hub", "HF_TOKEN")),
        ("liuhaotian/llava-v1.5-7b", ("an original LLaVA checkpoint", "`llava-gateway convert liuhaotian/llava-v1.5-7b llava-v1.5-7b-hf`")),
        ("no name/at/all", ("neither a directory here nor the name of a model",)),
    ],
)
def test_model_that_the_hub_refuses_ends_the_server_with_the_reason(hub: str, model: str, words: tuple[str, ...], tmp_path: Path) -> None:
    reason = last_error(tmp_path, model, HF_ENDPOINT=hub)
    assert all(word in reason for word in words), reason


@pytest.mark.parametrize(
    ("environment", "words"),
    [({}, "the Hugging Face Hub cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
    ids=["no network", "offline"],
)
def test_unreachable_hub_ends_the_server_with_the_reason(environment: dict[str, str], words: str, tmp_path: Path) -> None:
    flags = ("--memory-check", "off")  # the machine of this test may be too small
    reason = last_error(tmp_path, "llava-hf/llava-1.5-7b-hf", *flags, HF_ENDPOINT=f"http://127.0.0.1:{free_port()}", **environment)
    assert words in reason
    assert "no earlier download" in reason


@ON_CPU
def test_model_that_does_not_fit_ends_the_server_before_the_hub_is_asked(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    reason = last_error(tmp_path, "llava-hf/llava-1.5-7b-hf", "--gpu-memory-utilization", "0.001", HF_ENDPOINT=nowhere)
    assert reason.startswith("llava-hf/llava-1.5-7b-hf needs 17.8 GB of memory: ")


def test_broken_weights_end_the_server(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes(b"")
    assert "is damaged or cut short" in last_error(tmp_path, str(checkpoint))


RUNS: list[tuple[dict[str, Any] | None, str | None]] = [  # `quantization_config` of config.json, and --quantization
    (None, None),
    ({"quant_method": "awq", "bits": 4}, None),
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "compressed-tensors", "config_groups": {}}, None),
    (None, "fp8_per_block"),
]
DOES_NOT_RUN = [
    ({"quant_method": "gptq", "bits": 8}, None, "the checkpoint's quantisation, gptq, does not run on a CPU with 8 bits, only with 4"),
    ({"quant_method": "fp8"}, None, "the checkpoint's quantisation, fp8, does not run on a CPU; supported there: awq"),
    ({"quant_method": "bitsandbytes"}, None, "the checkpoint's quantisation, bitsandbytes, is unknown to this vLLM"),
    (None, "bitsandbytes", "--quantization bitsandbytes is unknown to this vLLM, which knows awq"),
    (
        None,
        "int8_per_channel_weight_only",
        "--quantization int8_per_channel_weight_only has no effect: it quantizes only mixtures of experts",
    ),
    ({"quant_method": "awq", "bits": 4}, "fp8_per_block", "--quantization fp8_per_block is for 16-bit weights"),
]


@pytest.mark.slow
@ON_CPU
@pytest.mark.parametrize(("found", "asked"), RUNS)
def test_quantization_of_the_cpu_is_accepted(found: dict[str, Any] | None, asked: str | None) -> None:
    check_quantization({"quantization_config": found} if found else {}, asked)


@pytest.mark.slow
@ON_CPU
@pytest.mark.parametrize(("found", "asked", "words"), DOES_NOT_RUN)
def test_quantization_that_does_not_run_on_the_cpu_is_refused(found: dict[str, Any] | None, asked: str | None, words: str) -> None:
    with pytest.raises(EngineStartError, match=f"^{words}"):
        check_quantization({"quantization_config": found} if found else {}, asked)


@pytest.mark.slow
@ON_CPU
def test_quantization_is_checked_before_vllm_starts(checkpoint: Path) -> None:
    with pytest.raises(EngineStartError, match=r"^--quantization fp8 does not run on a CPU; supported there: awq"):
        engine_arguments(str(checkpoint), ["--quantization", "fp8"])


@ON_CPU
@pytest.mark.slow
def test_quantization_that_the_checkpoint_lacks_ends_the_server(tmp_path: Path) -> None:
    assert "Cannot find the config file for awq" in last_error(tmp_path, "llava-demo", "--quantization", "awq")
