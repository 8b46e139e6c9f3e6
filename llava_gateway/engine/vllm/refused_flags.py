"""vLLM's engine flags that would have no effect behind the gateway, with what to do instead."""

import argparse
from typing import Any

from llava_gateway.errors import EngineStartError

_TRANSFORM = "the gateway decodes and resizes images itself; see --image-aspect-ratio"
_REASONING = "the supported models do not mark their reasoning"
_VIDEO = "the gateway counts a video with the tokens of all its frames"
_POOLING = "the gateway generates text and has no embeddings"
_SLEEP = "the gateway has no endpoint that puts the engine to sleep; stop the server instead"
_OUTPUTS = "the APIs have no field for this output"

REFUSED: dict[str, str] = {
    "runner": _POOLING,
    "convert": _POOLING,
    "pooler_config": _POOLING,
    "io_processor_plugin": _POOLING,
    "max_lora_cls_labels": _POOLING,
    "tokenizer_mode": "the gateway needs the model's fast tokenizer of Hugging Face",
    "skip_tokenizer_init": "the gateway needs the tokenizer",
    "allowed_media_domains": "use --image-hosts",
    "allowed_local_media_path": "the server reads no local files for its clients; `llava-gateway batch` does",
    "media_io_kwargs": _TRANSFORM,
    "mm_processor_kwargs": _TRANSFORM,
    "mm_hasher_algorithm": "the gateway names images by the BLAKE3 digest of their content",
    "interleave_mm_strings": "images always stay at their places between the texts of a message",
    "language_model_only": "the gateway serves models that see images",
    "mm_encoder_only": "the gateway serves models that answer in text",
    "enable_mm_embeds": "the APIs take images and no embeddings",
    "enable_prompt_embeds": "the APIs take texts and token ids and no embeddings",
    "video_pruning_rate": _VIDEO,
    "video_pruning_method": _VIDEO,
    "reasoning_parser": _REASONING,
    "reasoning_parser_plugin": _REASONING,
    "reasoning_config": _REASONING,
    "default_mm_loras": "a client names the adapter as its model; see docs/lora.md",
    "enable_tower_connector_lora": "the gateway loads adapters of the language model only",
    "enable_sleep_mode": _SLEEP,
    "sleep_mode_offload_cudagraph": _SLEEP,
    "sleep_preserve_parameter_names": _SLEEP,
    "enable_return_routed_experts": _OUTPUTS,
    "return_sampling_mask": _OUTPUTS,
    "per_request_spec_decode_metrics": _OUTPUTS,
    "enable_trace_replay": "the APIs have no field that turns it on for a request",
    "scheduling_policy": "requests have no priority",
    "weight_transfer_config": "the gateway has no endpoints for training",
    "profiler_config": "the gateway has no endpoints that start a profile",
    "enable_log_requests": "use --usage-log, or --log-level debug",
    "aggregate_engine_logging": "the engines' figures are at /metrics",
}
"""By the name of the argument. The default value is always accepted, because it asks for nothing."""
ALSO_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "runner": ("generate",),
    "convert": ("none",),
    "tokenizer_mode": ("hf",),
}
"""Further values that ask for the gateway's own behavior."""
MAX_LOGPROBS = 20
"""The most log probabilities that a request may ask for at each token, as in OpenAI's API."""


def check_flags(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise EngineStartError if an argument of vLLM's parser would have no effect behind the gateway."""
    for name, reason in REFUSED.items():
        value = getattr(arguments, name, None)
        if value != parser.get_default(name) and value not in ALSO_ACCEPTED.get(name, ()):
            raise EngineStartError(f"--{name.replace('_', '-')} is not supported: {reason}")
    if not 0 <= arguments.max_logprobs <= MAX_LOGPROBS:
        raise EngineStartError(f"--max-logprobs is at most {MAX_LOGPROBS}, as in OpenAI's API")
    if arguments.limit_mm_per_prompt.get("image") == 0:
        raise EngineStartError(f"--limit-mm-per-prompt forbids images: {REFUSED['language_model_only']}")
