"""The command line: flags, environment and file make settings; the rest is vLLM's."""

import os
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


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llava_gateway", *arguments], capture_output=True, text=True, timeout=120)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command without a process of its own, which takes a second to start: its status, and what it says on stdout and stderr."""

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-gateway", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    for name in ("observability.logging.set_up", "cli.serve._keep_large_buffers"):  # of the whole process
        monkeypatch.setattr(f"llava_gateway.{name}", lambda *_: None)
    return called


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
def test_a_wrong_value_is_one_line(call: Call, arguments: list[str]) -> None:
    status, _, complaint = call("serve", *arguments)
    assert status == 2
    assert len(complaint.splitlines()) == 1
    assert arguments[0] in complaint


@pytest.mark.parametrize("wrong", ["--no-such-flag", "/no/such/model"])
def test_an_unknown_flag_or_model_is_one_line_of_log(wrong: str) -> None:
    ended = run("serve", wrong, "--port", "58123")
    assert ended.returncode == 1
    assert wrong in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--dtype", "bananas"], "bananas"), (["--max-num", "5"], "flags"), (["--max-model-len"], "max-model-len")],
)
def test_flags_that_vllm_does_not_take(arguments: list[str], said: str) -> None:
    """Without a `serve` for each, which takes the seconds of vLLM's import: it ends with what is raised here."""
    with pytest.raises(EngineStartError, match=said) as refused:
        engine_arguments(str(CHECKPOINT), arguments)
    assert "\n" not in str(refused.value)


def test_without_an_engine_the_log_says_what_to_install() -> None:
    """The core installs without vLLM."""
    script = "import sys; sys.modules.update(vllm=None, msgspec=None, torch=None); from llava_gateway.cli.main import main; main()"
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
    said = run("--help").stdout
    assert all(f"  {command} " in said for command in COMMANDS)
    assert run().stdout == said


@pytest.mark.parametrize(("typed", "said"), [("sevre", "did you mean 'serve'?"), ("export_dataset", "'export-dataset'"), ("fly", "--help")])
def test_a_mistyped_command(typed: str, said: str) -> None:
    ended = run(typed)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{typed!r}" in ended.stderr
    assert said in ended.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ((), *((command,) for command in COMMANDS), ("keys", "new")):
        status, said, complaint = call(*command, "--help")
        assert (status, complaint) == (0, "")
        long = [line for line in said.splitlines() if len(line) > columns]
        assert all("llava-gateway " in line for line in long), "only what is there to be copied may be longer"
        assert "example" in said or command == ("keys", "new")


def test_every_group_of_the_help_begins_with_a_setting() -> None:
    assert flags.GROUPS.keys() <= Settings.model_fields.keys()
    assert next(iter(Settings.model_fields)) in flags.GROUPS


def test_help_imports_next_to_nothing() -> None:
    script = "import sys; sys.argv = ['', '--help']; from llava_gateway.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert "llava_gateway.cli.main" in loaded
    assert not {"vllm", "torch", "pydantic", "starlette", "httpx", "argparse"} & set(loaded)


@pytest.mark.parametrize("command", ["", "serve"])
def test_help_into_a_closed_pipe_ends_silently(command: str) -> None:
    script = f"{sys.executable} -m llava_gateway {command} --help | true"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""


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
    """In the shell itself, at its prompt."""
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    Path("picture.png").touch()
    Path("_llava-gateway" if shell == "zsh" else f"script.{shell}").write_text(run("completion", shell).stdout)
    if shell == "fish":
        for typed, completed in COMPLETED:
            asked = f"source script.fish; complete -C 'llava-gateway {typed}'"
            said = subprocess.run(["fish", "-c", asked], capture_output=True, text=True, timeout=60).stdout
            assert completed in said.split(), typed
        return
    flags = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    child = pexpect.spawn(shell, flags, encoding="utf-8", timeout=30, dimensions=(40, 200), env=os.environ | {"TERM": "dumb"})
    child.sendline("fpath=($PWD $fpath); autoload -U compinit; compinit -u -D" if shell == "zsh" else "source ./script.bash")
    for typed, completed in COMPLETED:
        child.sendline("echo :")
        child.expect("\n:\r")
        child.send(f"llava-gateway {typed}\t")
        child.expect_exact(completed)
        child.send("\x15")  # the line is not run
    child.close()


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
        (["--apis", "openai,no-such"], "apis"),
        (["--rate-limit-storage", "mongodb://x"], "redis://"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_start(call: Call, arguments: list[str], said: str) -> None:
    Path("broken.json").write_text("{")
    status, _, complaint = call("serve", "llava-demo", "--port", "58125", *arguments)
    assert status == 2
    assert len(complaint.splitlines()) == 1
    assert said in complaint


def test_a_refusal_is_all_that_is_said() -> None:
    """By a process of its own, with whatever it imports."""
    ended = run("serve", "llava-demo", "--host", "0.0.0.0")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
