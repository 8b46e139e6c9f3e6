"""vLLM's command lines, as people copy them: each flag has an effect, or a sentence that says what to do."""

import argparse
from pathlib import Path

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from llava_gateway.cli import flags
from llava_gateway.cli.vllm_flags import ACCEPTED_SWITCHES, REFUSED_SWITCHES, REFUSED_VALUES, STORE_TRUE
from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.launch import engine_arguments
from llava_gateway.engine.vllm.refused_flags import REFUSED
from llava_gateway.errors import EngineStartError
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def engine_options() -> dict[str, argparse.Action]:
    return options(AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the line with which a command line is refused."""
    with pytest.raises(SystemExit) as exited:
        flags.parse(arguments)
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_flag_of_vllm_serve_is_a_setting_or_the_engines_or_has_a_sentence() -> None:
    """Fails when a new version of vLLM has a new flag. Decide what it means here, and add it to `cli/vllm_flags.py`."""
    theirs = options(make_arg_parser(FlexibleArgumentParser()))
    known = options(flags.make_parser()).keys() | engine_options().keys() | {"--config"}
    assert theirs.keys() - known == set()
    store_true = {option for option, action in theirs.items() if isinstance(action, argparse._StoreTrueAction)}
    assert {f"--{name}" for name in STORE_TRUE} == {option for option in store_true if option.startswith("--")}


def test_tables_of_flags_have_no_flag_that_vllm_does_not_know() -> None:
    """Such a flag would hide a mistyped one. `--disable-log-requests` belongs to earlier versions of vLLM."""
    theirs = options(make_arg_parser(FlexibleArgumentParser())).keys()
    assert {*REFUSED_SWITCHES, *ACCEPTED_SWITCHES, *REFUSED_VALUES} - theirs == {"--disable-log-requests"}
    assert REFUSED.keys() <= {action.dest for action in engine_options().values()}
    ours = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert not ours & {*REFUSED_SWITCHES, *ACCEPTED_SWITCHES, *REFUSED_VALUES}, "a setting has priority: remove it from the table"


def test_settings_have_vllms_spellings() -> None:
    copied = [
        *("my/model", "--served_model_name", "a", "b", "--api-key", "k1", "k2", "--chat-template", "{{ messages }}"),
        *("--allowed-media-domains", "x.org", "y.org", "--allowed-origins", '["https://a.org", "https://b.org"]'),
        *("--sse-keep-alive-interval", "5", "--uvicorn-log-level", "trace", "--root_path=/llava", "--uds", "/tmp/s"),
        *("--enable-auto-tool-choice", "--no-enable-log-requests", "--disable-log-requests", "--no-enable-log-deltas".replace("no-", "")),
        *("--max_model_len", "2048", "--limit-mm-per-prompt.image", "4", "-O0", "--hf_overrides.a_b=1"),
    ]
    settings, rest = flags.parse(copied)
    assert (settings.model, settings.served_model_name, settings.model_alias) == ("my/model", "a", ("b",))
    assert (settings.api_keys, settings.template) == (("k1", "k2"), "{{ messages }}")
    assert (settings.image_hosts, settings.cors_origins) == (("x.org", "y.org"), ("https://a.org", "https://b.org"))
    assert (settings.keep_alive, settings.log_level, settings.root_path, settings.uds) == (5, "debug", "/llava", "/tmp/s")
    engine = ["--max-model-len", "2048", "--limit-mm-per-prompt.image", "4", "-O0", "--hf-overrides.a_b=1"]
    assert rest == ["--no-enable-log-requests", *engine]


def test_several_names_add_to_the_aliases() -> None:
    settings, _ = flags.parse(["--served-model-name", "a", "b", "c", "--model-alias", "d=vicuna_v1"])
    assert (settings.served_model_name, settings.model_alias) == ("a", ("b", "c", "d=vicuna_v1"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--middleware", "x.y"], "--middleware: is vLLM's and not supported here: create the app with llava_gateway.create_app"),
        (["--api-server-count", "2"], "one gateway serves one engine"),
        (["-asc", "2"], "one gateway serves one engine"),
        (["--headless"], "--headless"),
        (["--trust_request_chat_template"], "--template"),
        (["--response-role", "bot"], "the role assistant"),
        (["--default-chat-template-kwargs.enable_thinking", "false"], "chat templates take no arguments"),
        (["--allowed-local-media-path", "/data"], "llava-gateway batch"),
        (["m", "--model", "n"], "the model is given twice, as m and as --model n"),
        (["--config", "missing.yaml"], "--config missing.yaml cannot be read: No such file or directory"),
    ],
)
def test_flag_without_a_meaning_here_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in refused(capsys, *arguments)


@pytest.mark.parametrize(("flag", "accepted"), [(flag, values) for flag, (_, values) in REFUSED_VALUES.items()])
def test_values_of_refused_flags(capsys: pytest.CaptureFixture[str], flag: str, accepted: tuple[str, ...]) -> None:
    for value in accepted:
        assert flags.parse([f"{flag}={value}"])[1] == []
    assert f"argument {flag}" in refused(capsys, flag, "1.2.3").replace("/-asc", "")


@pytest.mark.parametrize("flag", REFUSED_SWITCHES)
def test_switch_is_refused_and_its_opposite_is_not(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert f"argument {flag}" in refused(capsys, flag)
    opposite = flag.replace("--no-", "--", 1) if flag.startswith("--no-") else flag.replace("--", "--no-", 1)
    assert flags.parse([opposite])[1] == []


def test_config_file_has_flags_of_both_kinds_and_the_command_line_overrides_it() -> None:
    Path("vllm.yaml").write_text(
        "model: their/model\nport: 9000\nmax_model_len: 2048\nserved-model-name: [a, b]\nenforce-eager: true\n"
        "enable-prefix-caching: false\ndisable-log-stats: false\nlimit-mm-per-prompt:\n  image: 4\nchat-template:\n"
    )
    engine = ["--max-model-len", "2048", "--enforce-eager", "--no-enable-prefix-caching", "--limit-mm-per-prompt", '{"image": 4}']
    settings, rest = flags.parse(["--config", "vllm.yaml", "--port", "9001", "--dtype", "half"])
    assert (settings.model, settings.port, settings.served_model_name, settings.model_alias) == ("their/model", 9001, "a", ("b",))
    assert rest == [*engine, "--dtype", "half"]
    settings, rest = flags.parse(["my/model", "--config=vllm.yaml"])
    assert (settings.model, settings.port, rest) == ("my/model", 9000, engine)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "1: 2", "\x00", "text"])
def test_file_that_is_no_configuration_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], content: str) -> None:
    Path("wrong.yaml").write_text(content)
    assert "--config wrong.yaml is not" in refused(capsys, "--config", "wrong.yaml")


def test_engine_takes_vllms_spellings() -> None:
    copied = ["--max_model_len", "1k", "--limit-mm-per-prompt.image", "4", "-O0", "--override-generation-config.temperature", "0"]
    arguments = engine_arguments(str(CHECKPOINT), copied)
    assert (arguments.max_model_len, arguments.limit_mm_per_prompt, arguments.optimization_level) == (1000, {"image": 4}, "0")
    assert arguments.override_generation_config == {"temperature": 0}


VALUES = {
    "runner": "pooling", "convert": "embed", "tokenizer_mode": "slow", "mm_hasher_algorithm": "sha256", "video_pruning_method": "vidcom2",
    "scheduling_policy": "priority", "video_pruning_rate": "0.5", "per_request_spec_decode_metrics": "summary",
    "media_io_kwargs": "{\"a\": {\"b\": 1}}", "mm_processor_kwargs": "{\"a\": 1}", "default_mm_loras": "{\"image\": \"x\"}",
    "pooler_config": "{}", "reasoning_config": "{}", "profiler_config": "{\"profiler\": \"torch\", \"torch_profiler_dir\": \"/tmp\"}",
    "weight_transfer_config": "{}", "max_lora_cls_labels": "2",
}  # fmt: skip
"""A value for each refused flag that does not take any text."""


@pytest.mark.parametrize("name", REFUSED)
def test_engine_flag_without_effect_is_refused_with_a_reason(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    switch = engine_options()[flag].nargs == 0
    with pytest.raises(EngineStartError, match=f"{flag} is not supported: ") as told:
        engine_arguments(str(CHECKPOINT), [flag] if switch else [flag, VALUES.get(name, "x")])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-logprobs", "50"], "at most 20"),
        (["--limit-mm-per-prompt.image", "0"], "forbids images"),
        (["--no_such_flag", "1"], "neither llava-gateway nor vLLM knows the flag --no-such-flag"),
    ],
)
def test_wrong_engine_flag_is_named(arguments: list[str], expected: str) -> None:
    with pytest.raises(EngineStartError, match=expected):
        engine_arguments(str(CHECKPOINT), arguments)


def test_accepted_values_of_refused_engine_flags() -> None:
    engine_arguments(str(CHECKPOINT), ["--runner", "generate", "--tokenizer-mode", "hf", "--no-enable-log-requests", "--max-logprobs", "5"])


def test_template_may_be_jinja_itself() -> None:
    """vLLM's `--chat-template` takes a template in a single line, too."""
    assert ServedModel("m", None, "{% for message in messages %}{{ message.role }}{% endfor %}")._template  # type: ignore[arg-type]
