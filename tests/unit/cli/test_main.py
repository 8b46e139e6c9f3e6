"""The command line: flags, environment and file become settings, and other flags go to vLLM."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from llava_gateway import __version__
from llava_gateway.cli import flags
from llava_gateway.cli.main import COMMANDS, main
from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.launch import engine_arguments
from llava_gateway.errors import EngineStartError
from llava_gateway.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llava_gateway", *arguments], capture_output=True, text=True, timeout=120)


Call = Callable[..., tuple[int, str, str]]
"""Takes the arguments and returns the exit status, stdout and stderr."""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process, since a new process takes a second to start."""

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-gateway", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        return int(exited.value.code or 0), *capsys.readouterr()

    for name in ("observability.logging.set_up", "cli.serve._reuse_freed_memory"):  # they change the whole process
        monkeypatch.setattr(f"llava_gateway.{name}", lambda *_: None)
    return run_main


def test_unknown_flags_are_left_for_vllm() -> None:
    settings, rest = flags.parse(["my/model", "--port", "9", "--dtype", "half", "--allow-networks", "10.0.0.0/8, ::1/128", "--seed=1"])
    assert (settings.model, settings.port) == ("my/model", 9)
    assert [str(network) for network in settings.allow_networks] == ["10.0.0.0/8", "::1/128"]
    assert rest == ["--dtype", "half", "--seed=1"]


def test_flags_override_environment_and_environment_overrides_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("llava-gateway.toml").write_text('port = 1\nmax_queued = 2\nhost = "file"\n')
    monkeypatch.setenv("LLAVA_MAX_QUEUED", "3")
    monkeypatch.setenv("LLAVA_HOST", "environment")
    settings, _ = flags.parse(["--host", "flag"])
    assert (settings.port, settings.max_queued, settings.host, settings.max_body_mb) == (1, 3, "flag", 64)


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port", "70000"], ["--max-body-mb", "0"], ["--allow-networks", "10.0.0.1/8"]])
def test_invalid_value_is_reported_in_one_line(call: Call, arguments: list[str]) -> None:
    status, _, stderr = call("serve", *arguments)
    assert status == 2
    assert len(stderr.splitlines()) == 1
    assert arguments[0] in stderr


@pytest.mark.parametrize("wrong", ["--no-such-flag", "/no/such/model"])
@pytest.mark.slow
def test_unknown_flag_or_model_ends_serve_without_traceback(wrong: str) -> None:
    result = run("serve", wrong, "--port", "58123")
    assert result.returncode == 1
    assert wrong in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--dtype", "bananas"], "bananas"), (["--max-num", "5"], "flags"), (["--max-model-len"], "max-model-len")],
)
def test_flags_that_vllm_refuses_are_reported_in_one_line(arguments: list[str], expected: str) -> None:
    """Tests the function that `serve` calls, since each `serve` would import vLLM for seconds."""
    with pytest.raises(EngineStartError, match=expected) as refused:
        engine_arguments(str(CHECKPOINT), arguments)
    assert "\n" not in str(refused.value)


def test_serve_without_vllm_names_the_extra_to_install() -> None:
    """The package can be installed without vLLM."""
    script = "import sys; sys.modules.update(vllm=None, msgspec=None, torch=None); from llava_gateway.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script, "serve", "llava-demo", "--port", "58124"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "install the extra" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_every_setting() -> None:
    help_text = run("serve", "--help").stdout
    assert all(f"--{name.replace('_', '-')}" in help_text for name in Settings.model_fields)


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == f"llava-gateway {__version__}"
    help_text = run("--help").stdout
    assert all(f"  {command} " in help_text for command in COMMANDS)
    assert run().stdout == help_text


@pytest.mark.parametrize(
    ("typed", "expected"), [("sevre", "did you mean 'serve'?"), ("export_dataset", "'export-dataset'"), ("fly", "--help")]
)
def test_mistyped_command_gets_a_suggestion(typed: str, expected: str) -> None:
    result = run(typed)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{typed!r}" in result.stderr
    assert expected in result.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ((), *((command,) for command in COMMANDS), ("keys", "new")):
        status, help_text, stderr = call(*command, "--help")
        assert (status, stderr) == (0, "")
        long = [line for line in help_text.splitlines() if len(line) > columns]
        assert all("llava-gateway " in line for line in long), "only commands that users copy may be longer"
        assert "example" in help_text or command == ("keys", "new")


def test_every_group_of_help_begins_with_a_setting() -> None:
    assert flags.GROUPS.keys() <= Settings.model_fields.keys()
    assert next(iter(Settings.model_fields)) in flags.GROUPS


def test_help_does_not_import_slow_packages() -> None:
    script = "import sys; sys.argv = ['', '--help']; from llava_gateway.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert "llava_gateway.cli.main" in loaded
    assert not {"vllm", "torch", "pydantic", "starlette", "httpx", "argparse"} & set(loaded)


@pytest.mark.parametrize("command", ["", "serve"])
def test_help_into_a_closed_pipe_prints_no_error(command: str) -> None:
    script = f"{shlex.quote(sys.executable)} -m llava_gateway {command} --help | true"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""


COMPLETED = [
    ("ser", "serve"),
    ("serve llava-demo --image-aspect-", "--image-aspect-ratio"),
    ("serve --image-aspect-ratio p", "pad"),
    ("keys new alice --requests", "--requests-per-minute"),
    ("chat --image pic", "picture.png"),
    ("completion z", "zsh"),
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """Types at the prompt of the real shell."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    Path("picture.png").touch()
    Path("_llava-gateway" if shell == "zsh" else f"script.{shell}").write_text(run("completion", shell).stdout)
    if shell == "fish":
        for typed, completed in COMPLETED:
            script = f"source script.fish; complete -C 'llava-gateway {typed}'"
            suggestions = subprocess.run(["fish", "-c", script], capture_output=True, text=True, timeout=60).stdout
            assert completed in suggestions.split(), typed
        return
    flags = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    child = pexpect.spawn(shell, flags, encoding="utf-8", timeout=30, dimensions=(40, 200), env=os.environ | {"TERM": "dumb"})
    child.sendline("fpath=($PWD $fpath); autoload -U compinit; compinit -u -D" if shell == "zsh" else "source ./script.bash")
    for typed, completed in COMPLETED:
        child.sendline("echo :")
        child.expect("\n:\r")
        child.send(f"llava-gateway {typed}\t")
        child.expect_exact(completed)
        child.send("\x15")  # Ctrl-U deletes the line
    child.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
        (["--apis", "openai,no-such"], "apis"),
        (["--rate-limit-storage", "mongodb://x"], "redis://"),
    ],
)
def test_invalid_settings_are_refused_at_start(call: Call, arguments: list[str], expected: str) -> None:
    Path("broken.json").write_text("{")
    status, _, stderr = call("serve", "llava-demo", "--port", "58125", *arguments)
    assert status == 2
    assert len(stderr.splitlines()) == 1
    assert expected in stderr


def test_refusal_is_the_only_output() -> None:
    """Runs a process, so that warnings of imported packages would show."""
    result = run("serve", "llava-demo", "--host", "0.0.0.0")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
