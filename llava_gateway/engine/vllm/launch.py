"""How vLLM is started here: which of its defaults do not suit an engine behind a gateway, and what it knows of its model then."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava_gateway.engine import EngineStartError, ModelInfo
from llava_gateway.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with executor "uni": no Worker process beside the EngineCore
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore:resource_tracker:UserWarning",  # for the processes that vLLM starts
}
"""Variables that suit an embedded engine, where the operator has not set them."""


def engine_arguments(model: str, flags: Sequence[str]) -> "AsyncEngineArgs":
    """`flags` are vLLM's own, as its command line has them. Imports vLLM, which takes seconds. Raises EngineStartError."""
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
    if current_platform.is_cpu():
        # Compiling costs minutes on a CPU, wants a C++ compiler, and gains nothing. (What vLLM compiles at its first use, such as the ranks
        # of log probabilities, had all requests wait for 18 s.)
        arguments.enforce_eager = True
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        # A core for the front end: threads that wait for each other at each layer stand still while it has one of theirs.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))
        if arguments.tensor_parallel_size == 1 and arguments.distributed_executor_backend is None:
            arguments.distributed_executor_backend = "uni"
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
    from vllm.v1.engine.async_llm import AsyncLLM

    from llava_gateway.engine.vllm.statistics import BulkStatLogger

    torch.set_num_threads(1)  # of this process, where it works on small pictures: more threads would wait for each other and spin
    disable_envs_cache()
    try:
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[BulkStatLogger])
    except Exception as error:
        raise EngineStartError(f"vLLM could not load {arguments.model}: {error}") from error
    enable_envs_cache()  # as vLLM does in the engine's process: it looks into the environment for every token
    return engine


def describe(engine: "AsyncLLM") -> ModelInfo:
    """Raises EngineStartError for a model that is no LLaVA of a kind that is served here."""
    config = engine.vllm_config.model_config
    if config.hf_config.model_type != "llava":
        raise EngineStartError(f"{config.model} is a {config.hf_config.model_type} model; this version serves LLaVA-1.5 (model type llava)")
    info = engine.renderer.get_mm_processor().info
    processor = info.get_hf_processor()
    tokenizer = processor.tokenizer
    side = config.hf_config.vision_config.image_size
    return ModelInfo(
        vocabulary=Vocabulary(tokenizer.backend_tokenizer.to_str()),
        chat_template=processor.chat_template or tokenizer.chat_template or "",
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        image_token=processor.image_token,
        image_tokens=info.get_num_image_tokens(image_width=side, image_height=side),
        image_side=side,
        context_length=config.max_model_len,
    )
