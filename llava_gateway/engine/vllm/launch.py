"""How vLLM is started here: which of its defaults do not suit an engine behind a gateway, and what it knows of its model then."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from llava_gateway.engine.vllm.checkpoint import check_checkpoint, check_kind, check_quantization
from llava_gateway.engine.vllm.compat import choose_cpu_worker
from llava_gateway.engine.vllm.lora import check_adaptable, leave_a_slot_empty
from llava_gateway.errors import EngineStartError
from llava_gateway.images.geometry import ImageTokens, Size
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import ModelInfo, VisionConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

ONEVISION = "llava_onevision"
ONEVISION_SQUARES = 9
"""vLLM's own, whatever the config's `vision_aspect_ratio` says."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with executor "uni": no Worker process beside the EngineCore
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": "32",  # outputs between two turns of the event loop; 128 with log probabilities hold it for 50 ms
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore:resource_tracker:UserWarning",  # for the processes that vLLM starts
}
"""Variables that suit an embedded engine, where the operator has not set them."""


def engine_arguments(model: str, flags: Sequence[str]) -> "AsyncEngineArgs":
    """`flags` are vLLM's own, as its command line has them. Imports vLLM, which takes seconds. Raises EngineStartError."""
    config = check_checkpoint(model, flags)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise EngineStartError(f"vLLM cannot be imported ({error}); install the extra 'cpu' or 'cuda'") from error
    parser = FlexibleArgumentParser(prog="llava-gateway serve", add_help=False, usage=argparse.SUPPRESS, exit_on_error=False)
    AsyncEngineArgs.add_cli_args(parser)
    try:
        arguments, unknown = parser.parse_known_args(["--model", model, *flags])
    except (argparse.ArgumentError, ValueError, SystemExit) as error:  # argparse exits at some errors all the same
        raise EngineStartError(f"vLLM does not take these flags: {error}") from error
    if unknown:
        raise EngineStartError(f"neither llava-gateway nor vLLM knows the flag {unknown[0]}")
    check_quantization(config, arguments.quantization)
    if arguments.enable_lora:
        check_adaptable(config)
    if current_platform.is_cpu():
        # Compiling costs minutes on a CPU, wants a C++ compiler, and gains nothing. (What vLLM compiles at its first use, such as the ranks
        # of log probabilities, had all requests wait for 18 s.)
        arguments.enforce_eager = True
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        # A core for the front end: threads that wait for each other at each layer stand still while it has one of theirs.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))
        if arguments.tensor_parallel_size == 1 and arguments.distributed_executor_backend is None:
            arguments.distributed_executor_backend = "uni"
        if arguments.enable_lora:
            leave_a_slot_empty(arguments)
        choose_cpu_worker(arguments)
    if arguments.structured_outputs_config.backend == "auto":
        # With "auto" vLLM keeps the backend that the first request led it to, and other requests' grammars fail on that. Of the
        # backends only guidance limits the work for a token: a regular expression of 100 characters has xgrammar 0.2.8 hang.
        # Free to put white space anywhere, small models put it everywhere and never come to the point.
        arguments.structured_outputs_config.backend = "guidance"
        arguments.structured_outputs_config.disable_any_whitespace = True
    return AsyncEngineArgs.from_cli_args(arguments)


def make_engine(arguments: "AsyncEngineArgs") -> "AsyncLLM":
    """Starts its processes and loads the model. Raises EngineStartError."""
    import torch
    from vllm.envs import disable_envs_cache, enable_envs_cache
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from llava_gateway.engine.vllm.metrics import BulkStatLogger

    torch.set_num_threads(1)  # of this process, where it works on small pictures: more threads would wait for each other and spin
    disable_envs_cache()
    try:
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        _make_room_for_images(config)
        engine = AsyncLLM.from_vllm_config(
            config,
            stat_loggers=[BulkStatLogger],
            enable_log_requests=arguments.enable_log_requests,
            disable_log_stats=arguments.disable_log_stats,
        )
    except Exception as error:
        raise EngineStartError(f"vLLM could not load {arguments.model}: {_one_line(error)}") from error
    enable_envs_cache()  # as vLLM does in the engine's process: it looks into the environment for every token
    return engine


def _make_room_for_images(config: "VllmConfig") -> None:
    """vLLM takes the largest image of LLaVA-OneVision to be one of 8,748 tokens, the most of a picture in the shape of a grid, and refuses
    larger ones; pictures of some other shapes, such as 1152x1407, take up to 8,765."""
    model, scheduler = config.model_config.hf_config, config.scheduler_config
    if model.model_type == ONEVISION:
        side, patches = model.vision_config.image_size, model.vision_config.image_size // model.vision_config.patch_size
        max_image_tokens = ImageTokens(patches**2, side, patches, _grids(model), ONEVISION_SQUARES).max_image_tokens
        scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, max_image_tokens)
        scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_encoder_input_tokens, max_image_tokens)


def _one_line(error: Exception) -> str:
    """What pydantic, through which vLLM checks itself, says in several lines; of other errors the first line."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return "its process has ended, and said why above" if said.startswith("Engine core initialization failed") else said


def describe(engine: "AsyncLLM") -> ModelInfo:
    """Raises EngineStartError for a model that is no LLaVA of a kind that is served here, whatever the flags have made of it."""
    config = engine.vllm_config.model_config
    check_kind(config.model, config.hf_config.to_dict())
    info = engine.renderer.get_mm_processor().info
    processor = info.get_hf_processor()
    tokenizer = processor.tokenizer
    return ModelInfo(
        tokenizer=Tokenizer(tokenizer.backend_tokenizer.to_str()),
        chat_template=processor.chat_template or tokenizer.chat_template or "",
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        image_token=processor.image_token,
        vision=_vision(info, config.hf_config, processor.image_processor),
        context_length=config.max_model_len,
    )


def _vision(info: Any, config: Any, image_processor: Any) -> VisionConfig:
    """`info` is vLLM's, which knows how many tokens a picture takes."""
    from vllm.model_executor.models.llava import BaseLlavaProcessingInfo

    side = config.vision_config.image_size
    min_image_tokens = BaseLlavaProcessingInfo.get_num_image_tokens(
        info, image_width=side, image_height=side
    )  # those of the whole in one square
    grids = _grids(config)
    patches = info.get_vision_encoder_info().get_patch_grid_length()
    tokens = ImageTokens(min_image_tokens, side, patches, grids, ONEVISION_SQUARES if config.model_type == ONEVISION else None)
    red, green, blue = (int(mean * 255) for mean in image_processor.image_mean)
    crops = image_processor.do_center_crop and image_processor.size.get("shortest_edge")
    pads = getattr(image_processor, "do_pad", False)
    return VisionConfig(
        side=side,
        tokens=tokens,
        min_image_tokens=min_image_tokens,
        max_image_tokens=tokens.max_image_tokens,
        grids=grids,
        aspect_ratio="pad" if pads else "crop" if crops else "resize",
        mean_color=(red, green, blue),
    )


def _grids(config: Any) -> tuple[Size, ...]:
    return () if config.model_type == "llava" else tuple((width, height) for height, width in config.image_grid_pinpoints)
