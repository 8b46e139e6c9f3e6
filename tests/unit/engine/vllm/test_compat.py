"""The functions of the package `compat`, on vLLM's own objects. No engine is started."""

import asyncio
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import CompletionOutput
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.compat import engine_process, launch, lora, model, requests
from llava_gateway.engine.vllm.launch import engine_arguments

pytestmark = pytest.mark.slow


def test_engine_process_gets_the_variables_that_vllm_sets_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every start takes twice as long, because the process that was started ahead is not used."""
    for name in (*engine_process.VARIABLES, "NUMEXPR_MAX_THREADS", "VLLM_SSM_CONV_STATE_LAYOUT", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    expected = engine_process.variables()
    arguments = engine_arguments(str(CHECKPOINT), [])
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD")  # set for every platform, while vLLM sets it for CPUs
    before = dict(os.environ)
    config = launch.create_config(arguments)
    assert engine_process.is_cpu_build()
    assert engine_process.is_single_process(config)
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value and name.startswith(PLATFORM_VARIABLES)}
    changed.pop("VLLM_SSM_CONV_STATE_LAYOUT", None)
    assert changed == expected, "vLLM sets other variables for its engine. Adapt engine_process.variables."


PLATFORM_VARIABLES = ("LD_PRELOAD", "LOCAL_WORLD_SIZE", "NUMEXPR_", "TORCHINDUCTOR_CO", "TORCHINDUCTOR_CPP", "VLLM_")
"""How the variables begin that vLLM's platform for CPUs sets. An import sets others, which are then equal in both processes."""


def test_engine_process_is_offered_to_vllm_once() -> None:
    from vllm.v1.engine import utils

    original = utils.get_mp_context
    asked: list[Any] = []

    def create(function: Any, arguments: dict[str, Any]) -> Any:
        asked.append((function, arguments))
        return "early" if len(asked) == 1 else None

    with engine_process.offer(create):
        context = utils.get_mp_context()
        assert context.Process(target=print, name=engine_process.NAME, kwargs={"a": 1}) == "early"
        assert context.Process(target=print, name=engine_process.NAME, kwargs={}).name == engine_process.NAME
        assert context.Process(target=print, name="VLLM_DP_Coordinator", kwargs={}).name == "VLLM_DP_Coordinator"
        assert context.Queue
    assert asked == [(print, {"a": 1}), (print, {})]
    assert utils.get_mp_context is original


def collector() -> RequestOutputCollector:
    return RequestOutputCollector(RequestOutputKind.DELTA, "internal")


def output(text: str) -> RequestOutput:
    choice = CompletionOutput(0, text, [1], None, None)
    return RequestOutput("name", None, [1], None, [choice], finished=False)


def test_outputs_are_redirected_at_once_the_early_one_first() -> None:
    async def main() -> None:
        found: list[Any] = []
        redirected = collector()
        redirected.put(output("early"))
        requests.redirect_outputs(redirected, found.append)
        error = ValueError()
        redirected.put(output("late"))
        redirected.put(error)
        assert [each.outputs[0].text for each in found[:2]] == ["early", "late"]
        assert found[2] is error
        assert redirected.output is None, "vLLM holds outputs that nobody reads"
        requests.discard_outputs(redirected)
        redirected.put(output("nobody's"))
        assert (len(found), redirected.output) == (3, None)

    asyncio.run(main())


def test_abort_names_the_request_as_vllm_does() -> None:
    aborted: list[tuple[str, bool]] = []

    async def abort(name: str, *, internal: bool) -> None:
        aborted.append((name, internal))

    async def main() -> None:
        await requests.abort(SimpleNamespace(abort=abort), collector())

    asyncio.run(main())
    assert aborted == [("internal", True)]


def engine(**states: Any) -> Any:
    """A front end with the choices of two requests: a's are 0_a, 1_a and one that has ended, b's is b."""
    processor = OutputProcessor(tokenizer=None, log_stats=False)
    processor.request_states |= states
    processor.external_req_ids |= {"a": ["0_a", "1_a", "no", "ended"], "b": ["b"]}
    return SimpleNamespace(output_processor=processor)


def test_token_texts_are_skipped_for_all_choices_of_one_request() -> None:
    states = {name: SimpleNamespace(logprobs_processor=SimpleNamespace(tokenizer="t")) for name in ("0_a", "1_a", "b")}
    states["no"] = SimpleNamespace(logprobs_processor=None)
    requests.skip_token_texts(engine(**states), "a")
    assert [states[name].logprobs_processor.tokenizer for name in ("0_a", "1_a", "b")] == [None, None, "t"]


def test_generated_tokens_of_running_and_ended_choices_are_counted() -> None:
    def running(tokens: int, parent: Any) -> Any:
        return SimpleNamespace(detokenizer=SimpleNamespace(num_output_tokens=lambda: tokens), parent_req=parent)

    parent = SimpleNamespace(output_aggregator=[None, None, CompletionOutput(2, "", [7, 8, 9], None, None)])
    states = {"0_a": running(2, parent), "1_a": running(5, parent), "b": running(100, None)}
    assert requests.generated_tokens(engine(**states), "a") == 2 + 5 + 3
    assert requests.generated_tokens(engine(**states), "b") == 100
    assert requests.generated_tokens(engine(**states), "unknown") == 0


def test_images_and_videos_are_processed_by_vllms_renderer() -> None:
    asked: list[Any] = []
    skipped: list[bool] = []

    async def render_cmpl_async(prompts: list[Any], *, skip_mm_cache: bool) -> list[str]:
        asked.extend(prompts)
        skipped.append(skip_mm_cache)
        return ["rendered"]

    renderer = SimpleNamespace(render_cmpl_async=render_cmpl_async)
    image: Any = SimpleNamespace(pixels="pixels", digest="digest")
    assert asyncio.run(requests.process_media(renderer, [1, 2], [image])) == "rendered"
    prompt = {"prompt_token_ids": [1, 2], "multi_modal_data": {"image": ["pixels"]}, "multi_modal_uuids": {"image": ["digest"]}}
    assert asked == [prompt]
    asyncio.run(requests.process_media(renderer, [1, 2], [image], "salt"))
    assert asked[1:] == [prompt | {"multi_modal_uuids": {"image": ["digest-salt"]}, "cache_salt": "salt"}]
    asyncio.run(requests.process_media(renderer, [1, 2], [image], skip_cache=True))
    video: Any = SimpleNamespace(frames="frames", digest="video")
    asyncio.run(requests.process_media(renderer, [1, 2], [], "salt", videos=[video]))
    assert asked[3] == {
        "prompt_token_ids": [1, 2],
        "multi_modal_data": {"video": ["frames"]},
        "multi_modal_uuids": {"video": ["video-salt"]},
        "cache_salt": "salt",
    }
    assert skipped == [False, False, True, False]


def test_add_request_takes_a_prompt_that_is_not_rendered() -> None:
    """The supported way without `render_cmpl_async`."""
    from vllm.inputs import TokensPrompt

    names = {"prompt_token_ids", "multi_modal_data", "multi_modal_uuids", "cache_salt"}
    assert names <= TokensPrompt.__required_keys__ | TokensPrompt.__optional_keys__


def test_batches_are_as_large_as_those_of_vllms_server() -> None:
    """Otherwise vLLM takes the defaults of an unknown program, which are an eighth on a large GPU."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    assert all(UsageContext.OPENAI_API_SERVER in defaults for defaults in AsyncEngineArgs.get_batch_defaults(1))


def test_image_limits_are_raised_and_never_lowered() -> None:
    scheduler = SimpleNamespace(encoder_cache_size=8748, max_num_encoder_input_tokens=9000)
    launch.allow_media_tokens(SimpleNamespace(scheduler_config=scheduler), 8765)
    assert (scheduler.encoder_cache_size, scheduler.max_num_encoder_input_tokens) == (8765, 9000)


def test_environment_is_cached_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        launch.cache_environment()
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
        assert envs.VLLM_LOGGING_LEVEL == "ERROR"
        launch.forget_environment()
        assert envs.VLLM_LOGGING_LEVEL == "DEBUG"
    finally:
        launch.forget_environment()


def test_flag_parser_raises_instead_of_exiting() -> None:
    parser = launch.flag_parser()
    with pytest.raises(ValueError, match=f"^{launch.UNKNOWN_FLAG} --no-such-flag$"):
        parser.parse_args(["--model", "m", "--no-such-flag"])
    arguments = parser.parse_args(["--model", "m", "--enable-lora"])
    assert (arguments.model, arguments.enable_lora) == ("m", True)
    names = "enforce_eager tensor_parallel_size distributed_executor_backend max_loras max_cpu_loras worker_cls quantization".split()
    missing = [name for name in names if not hasattr(arguments, name)]
    assert not missing, f"vLLM's arguments have no {', '.join(missing)} any more. Adapt launch.py."
    settings = arguments.structured_outputs_config
    assert (settings.backend, settings.disable_any_whitespace, settings.disable_additional_properties) == ("auto", False, False)


def test_quantizations_are_known_by_the_names_of_checkpoints() -> None:
    assert {"awq", "gptq", "fp8", "compressed-tensors"} <= set(model.known_quantizations())


@pytest.mark.parametrize(
    ("flags", "sampling", "longest"),
    [
        ([], {"temperature": 0.25, "top_k": 7, "max_tokens": 9}, None),
        (["--generation-config", "vllm"], {}, None),
        (["--override-generation-config", '{"top_k": 3, "max_new_tokens": 5}'], {"temperature": 0.25, "top_k": 3, "max_tokens": 5}, 5),
        (["--generation-config", "other"], {"top_p": 0.5, "max_tokens": 4}, 4),
    ],
)
def test_model_has_the_sampling_parameters_of_its_generation_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], sampling: dict[str, float], longest: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKPOINT, "model")
    Path("model/generation_config.json").write_text('{"temperature": 0.25, "top_k": 7, "max_new_tokens": 9}')
    Path("other").mkdir()
    Path("other/generation_config.json").write_text('{"top_p": 0.5, "max_new_tokens": 4}')
    config = engine_arguments("model", flags).create_model_config()
    assert (model.default_sampling(config), model.max_answer_tokens(config)) == (sampling, longest)


def test_hash_of_a_configuration_depends_on_its_flags_alone() -> None:
    from vllm.config import ModelConfig, VllmConfig

    def hash_of(length: int) -> str:
        return model.config_hash(VllmConfig(model_config=ModelConfig(model=str(CHECKPOINT), max_model_len=length)))

    assert hash_of(2048) == hash_of(2048)
    assert hash_of(2048) != hash_of(1024)


@pytest.fixture(scope="module")
def demo() -> Any:
    """vLLM's configuration of the demo model, and the front end's processor of its prompts."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = EngineArgs(model=str(CHECKPOINT)).create_model_config()
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    return SimpleNamespace(config=config, renderer=SimpleNamespace(get_mm_processor=lambda: processor))


def test_tokens_of_the_demo_models_image(demo: Any) -> None:
    info = model.processing_info(demo)
    assert model.square_tokens(info, 336) == 576
    assert model.patches_per_side(info) == 24
    processor = model.hf_processor(info)
    missing = [name for name in ("tokenizer", "image_processor", "chat_template", "image_token") if not hasattr(processor, name)]
    assert not missing, f"the processor has no {', '.join(missing)} any more. Adapt launch.describe."


@pytest.mark.parametrize(("limits", "images"), [({}, 999), ({"image": 4}, 4), ({"image": {"count": 5}}, 5)])
def test_images_of_a_request_are_limited_by_the_flag(limits: dict[str, Any], images: int) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = EngineArgs(model=str(CHECKPOINT), limit_mm_per_prompt=limits).create_model_config()
    assert model.max_images(MULTIMODAL_REGISTRY.create_processor(config).info) == images


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."], ids=["new transformers", "old transformers"])
@pytest.mark.parametrize("half", ["A", "B"])
def test_names_of_adapters_are_mapped_to_layers(demo: Any, prefix: str, half: str) -> None:
    mapper = lora.layer_name_mapper(demo.config)
    layer = "layers.0.self_attn.q_proj"
    weight = f"base_model.model.{prefix}{layer}.lora_{half}.weight"
    assert lora.parse_weight_name(mapper, weight) == (f"language_model.model.{layer}", half == "A")
    assert lora.map_layer_name(mapper, prefix + layer) == f"language_model.model.{layer}"


def test_weight_of_no_adapter_is_refused(demo: Any) -> None:
    with pytest.raises(ValueError, match="unsupported"):
        lora.parse_weight_name(lora.layer_name_mapper(demo.config), "base_model.model.lm_head.weight")


def test_rank_of_an_adapter_at_a_layer() -> None:
    adapter = lora.parse_adapter_config({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}})
    assert lora.adapter_rank(adapter, "base_model.model.model.layers.0.q_proj.lora_A.weight") == 4
    assert lora.adapter_rank(adapter, "base_model.model.model.layers.0.v_proj.lora_A.weight") == 8


@pytest.mark.parametrize(("change", "words"), [({"r": 64}, "greater than max_lora_rank 16"), ({"use_dora": True}, "DoRA"), ({}, "")])
def test_unsupported_adapter_is_refused(change: dict[str, Any], words: str) -> None:
    adapter = lora.parse_adapter_config({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | change)
    limits: Any = SimpleNamespace(max_lora_rank=16)
    if not words:
        lora.check_adapter_config(adapter, limits)
    else:
        with pytest.raises(ValueError, match=words):
            lora.check_adapter_config(adapter, limits)
