"""The command line: flags, environment and file make settings; the rest is vLLM's."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava_gateway import __version__
from llava_gateway.cli import flags
from llava_gateway.settings import Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llava_gateway", *arguments], capture_output=True, text=True, timeout=120)


def test_ours_and_vllms_flags() -> None:
    settings, rest = flags.parse(["my/model", "--port", "9", "--dtype", "half", "--allow-networks", "10.0.0.0/8, ::1/128", "--seed=1"])
    assert (settings.model, settings.port) == ("my/model", 9)
    assert [str(network) for network in settings.allow_networks] == ["10.0.0.0/8", "::1/128"]
    assert rest == ["--dtype", "half", "--seed=1"]


def test_flags_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llava-gateway.toml").write_text('port = 1\nmax_queued = 2\nhost = "file"\n')
    monkeypatch.setenv("LLAVA_MAX_QUEUED", "3")
    monkeypatch.setenv("LLAVA_HOST", "environment")
    settings, _ = flags.parse(["--host", "flag"])
    assert (settings.port, settings.max_queued, settings.host, settings.max_body_mb) == (1, 3, "flag", 64)


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port", "70000"], ["--max-body-mb", "0"], ["--allow-networks", "10.0.0.1/8"]])
def test_a_wrong_value_is_one_line(arguments: list[str]) -> None:
    ended = run("serve", *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert arguments[0] in ended.stderr


def test_an_unknown_flag_or_model_is_one_line_of_log() -> None:
    wrong = ["--no-such-flag"], ["/no/such/model"], ["--dtype", "bananas"], ["--max-num", "5"], ["--max-model-len"]
    for arguments, said in zip(wrong, ("--no-such-flag", "/no/such/model", "bananas", "flags", "max-model-len"), strict=True):
        ended = run("serve", *arguments, "--port", "58123")
        assert ended.returncode == 1
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr


def test_without_an_engine_the_log_says_what_to_install() -> None:
    """The core installs without vLLM."""
    script = "import sys; sys.modules.update(vllm=None, msgspec=None, torch=None); from llava_gateway.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, "serve", "llava-demo", "--port", "58124"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "install the extra" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_lists_every_setting() -> None:
    said = run("serve", "--help").stdout
    assert all(f"--{name.replace('_', '-')}" in said for name in Settings.model_fields)


def test_other_commands() -> None:
    assert run("--version").stdout.strip() == f"llava-gateway {__version__}"
    assert "serve" in run("--help").stdout
    unknown = run("fly")
    assert unknown.returncode == 1
    assert "fly" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "llava-gateway keys new"),
        (["--host", "::"], "llava-gateway keys new"),
        (["--host", "my-machine"], "llava-gateway keys new"),
        (["--auth", "none", "--api-keys", "x"], "auth"),
        (["--keys-file", "missing.json"], "missing.json"),
        (["--keys-file", "broken.json"], "broken.json"),
        (["--usage-log", "no/such/folder/usage"], "usage_log"),
        (["--template", "no-such"], "llava-hf"),
        (["--model-alias", "a=no-such"], "llava-hf"),
        (["--doors", "openai,no-such"], "doors"),
        (["--rate-limit-storage", "mongodb://x"], "redis://"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_start(arguments: list[str], said: str) -> None:
    Path("broken.json").write_text("{")
    ended = run("serve", "llava-demo", "--port", "58125", *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert said in ended.stderr
