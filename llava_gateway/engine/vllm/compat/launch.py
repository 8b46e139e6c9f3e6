"""The start of vLLM's engine: its environment, its configuration and its front end.

Read in vLLM 0.32.0. Nothing here is imported from vLLM before it is called, because `launch.ENVIRONMENT` has to be set first.
"""

import argparse
import math
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM


PROCESS_FAILED = "Engine core initialization failed"
"""How vLLM's error begins if a process of the engine has ended at its start. That process has written the reason to the log.

Without it: the log has vLLM's own sentence, which says the same in more words.
"""


UNKNOWN_FLAG = "unrecognized arguments:"
"""How argparse's error begins if there is a flag that the parser does not know."""


def flag_parser() -> argparse.ArgumentParser:
    """Return a parser of vLLM's engine flags. Its `parse_args` raises an error for mistakes. Raises ImportError without vLLM.

    Touches: `FlexibleArgumentParser`, whose `parse_args` takes the forms of vLLM's command line, such as `--max_model_len`,
    `--hf-overrides.key value` and `-O0`, and `AsyncEngineArgs.add_cli_args`.
    Without it: an `argparse.ArgumentParser`, which does not take these forms.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class RaisingParser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM has no types
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    parser: argparse.ArgumentParser = RaisingParser(
        prog="llava-gateway serve", add_help=False, usage=argparse.SUPPRESS, exit_on_error=False
    )
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def create_config(arguments: "AsyncEngineArgs") -> "VllmConfig":
    """Return vLLM's configuration, with the defaults of vLLM's own server. Raises vLLM's or pydantic's error.

    The defaults of `--max-num-seqs` and `--max-num-batched-tokens` depend on the program around the engine. On a large GPU vLLM's server
    has 1024 and 8192, and an unknown program 128 and 2048.

    Touches: `AsyncEngineArgs.create_engine_config` and `UsageContext.OPENAI_API_SERVER`.
    Without it: `AsyncLLM.from_engine_args` creates the same configuration and starts the engine, so nothing in it could be changed.
    """
    from vllm.usage.usage_lib import UsageContext

    return arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)


def allow_media_tokens(config: "VllmConfig", tokens: int) -> None:
    """Have the engine accept an image or a video of this many tokens.

    Touches: `SchedulerConfig.encoder_cache_size` and `SchedulerConfig.max_num_encoder_input_tokens`, which vLLM derives from
    `--max-num-batched-tokens` and does not offer as flags.
    Without it: a larger `--max-num-batched-tokens`, or the engine refuses the largest images and videos.
    """
    scheduler = config.scheduler_config
    scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, tokens)
    scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_encoder_input_tokens, tokens)


def request_cache_bytes(config: "VllmConfig") -> int:
    """Return the KV cache that one request of full context needs in one worker, in bytes.

    Touches: `get_num_kv_heads`, `get_head_size`, `get_num_layers` and `dtype` of `ModelConfig`, and `block_size` and `cache_dtype` of
    `CacheConfig`. vLLM keeps one block for itself.
    Without it: `--kv-cache-memory-bytes` with a fixed size, which may be too little for one request.
    """
    of_model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    values = of_model.get_num_kv_heads(parallel) * of_model.get_head_size() * of_model.get_num_layers(parallel)
    size = of_model.dtype.itemsize if cache.cache_dtype in ("auto", str(of_model.dtype).removeprefix("torch.")) else 1
    blocks = math.ceil(of_model.max_model_len / cache.block_size) + 1
    return int(2 * values * size * blocks * cache.block_size)  # a key and a value for each


def free_cpu_memory() -> int:
    """Return the memory of a CPU that is free by vLLM's own count, in bytes. vLLM refuses a larger KV cache.

    Touches: `get_allowed_cpu_list` and `get_memory_node_info` of `vllm.utils.cpu_resource_utils`.
    Without it: the memory by `/proc/meminfo`. In a container vLLM counts the cache of files as used, and may refuse the KV cache.
    """
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    return int(get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory)


def bound_cache(config: "VllmConfig", size: int) -> None:
    """Give the KV cache of each worker a size in bytes.

    Touches: `CacheConfig.kv_cache_memory_bytes`, the flag `--kv-cache-memory-bytes`, which must be known before the model's configuration.
    Without it: the cache takes what is left of the share `--gpu-memory-utilization`.
    """
    config.cache_config.kv_cache_memory_bytes = size


def create_engine(config: "VllmConfig", arguments: "AsyncEngineArgs", stat_logger: type[Any]) -> "AsyncLLM":
    """Start vLLM's processes, load the model and return the engine's front end. Raises vLLM's error.

    `stat_logger`: a subclass of vLLM's `PrometheusStatLogger`, used instead of it.

    Touches: `AsyncLLM.from_vllm_config` and its argument `stat_loggers`.
    Without it: `AsyncLLM.from_engine_args`, which takes the same `stat_loggers`.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_vllm_config(
        config,
        stat_loggers=[stat_logger],
        enable_log_requests=arguments.enable_log_requests,
        disable_log_stats=arguments.disable_log_stats,
    )


def forget_environment() -> None:
    """Have vLLM read the environment's variables again, as an engine with other flags may need after a restart.

    Touches: `vllm.envs.disable_envs_cache`.
    Without it: the second engine of a process starts with the variables of the first.
    """
    from vllm.envs import disable_envs_cache

    disable_envs_cache()


def cache_environment() -> None:
    """Have vLLM remember the environment's variables, as it does in the engine's process. It reads them for every token.

    Touches: `vllm.envs.enable_envs_cache`.
    Without it: the same answers, and a slower event loop.
    """
    from vllm.envs import enable_envs_cache

    enable_envs_cache()
