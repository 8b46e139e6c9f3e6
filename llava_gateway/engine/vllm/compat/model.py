"""What vLLM knows of its model: how many tokens an image or a video takes, which quantizations there are, and a hash of its configuration.

Read in vLLM 0.32.0.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM


def processing_info(engine: "AsyncLLM") -> Any:
    """Return vLLM's `BaseLlavaProcessingInfo` of the engine's model.

    Touches: `AsyncLLM.renderer`, `BaseRenderer.get_mm_processor` and `BaseMultiModalProcessor.info`.
    Without it: `MULTIMODAL_REGISTRY.create_processor(model_config)` creates another one.
    """
    return engine.renderer.get_mm_processor().info


def hf_processor(info: Any) -> Any:
    """Return the Hugging Face processor of the model: its tokenizer, image processor and chat template.

    Touches: `BaseProcessingInfo.get_hf_processor`.
    Without it: `transformers.AutoProcessor.from_pretrained`, with the revision and the other flags that vLLM was given.
    """
    return info.get_hf_processor()


def square_tokens(info: Any, side: int) -> int:
    """Return the number of tokens of a whole image in one square.

    `side`: of the square, in pixels.

    Touches: `BaseLlavaProcessingInfo.get_num_image_tokens`. The model's own subclass would add the tokens of a grid.
    Without it: the square of `patches_per_side`, and one more for the strategy "full" of `vision_feature_select_strategy`.
    """
    from vllm.model_executor.models.llava import BaseLlavaProcessingInfo

    return int(BaseLlavaProcessingInfo.get_num_image_tokens(info, image_width=side, image_height=side))


def patches_per_side(info: Any) -> int:
    """Return the number of the vision encoder's patches along the side of a square.

    Touches: `BaseLlavaProcessingInfo.get_vision_encoder_info` and `VisionEncoderInfo.get_patch_grid_length`.
    Without it: `image_size // patch_size` of the checkpoint's `vision_config`.
    """
    return int(info.get_vision_encoder_info().get_patch_grid_length())


def max_images(info: Any) -> int | None:
    """Return the upper bound of images in a prompt. It is 999 if `--limit-mm-per-prompt` sets none. None: the model takes no images.

    Touches: `BaseProcessingInfo.allowed_mm_limits`.
    Without it: vLLM refuses more images itself, after they were loaded.
    """
    limit = info.allowed_mm_limits.get("image")
    return None if limit is None else int(limit)


def takes_images(info: Any) -> bool:
    """Return whether the model takes images. vLLM's LLaVA-NeXT-Video takes only videos.

    Touches: `BaseProcessingInfo.supported_mm_limits`.
    Without it: `model_type` of config.json.
    """
    return "image" in info.supported_mm_limits


def max_videos(info: Any) -> int:
    """Return the most videos of one prompt. It is 0 if the model takes none, or if vLLM's flag `--limit-mm-per-prompt` says so.

    Touches: `BaseProcessingInfo.allowed_mm_limits`.
    Without it: the limit of the flag, and 1 for LLaVA-NeXT-Video.
    """
    return int(info.allowed_mm_limits.get("video", 0))


def video_tokens(info: Any, side: int, frames: int) -> int:
    """Return the number of tokens of a video. `side`: of a frame, in pixels.

    Touches: `get_num_video_tokens` of `LlavaOnevisionProcessingInfo` and of `LlavaNextVideoProcessingInfo`.
    Without it: the square of half of `patches_per_side`, rounded up, for each frame; and one more for LLaVA-OneVision.
    """
    return int(info.get_num_video_tokens(image_width=side, image_height=side, num_frames=frames))


def max_media_tokens(engine: "AsyncLLM") -> int:
    """Return the most tokens of one image or video that the engine accepts.

    Touches: `AsyncLLM.input_processor` and `InputProcessor.mm_encoder_cache_size`.
    Without it: the number in `SchedulerConfig.encoder_cache_size`.
    """
    return int(engine.input_processor.mm_encoder_cache_size)


def known_quantizations() -> list[str]:
    """Return the quantization methods that vLLM has code for, on any kind of device.

    Touches: `QUANTIZATION_METHODS`.
    Without it: vLLM refuses an unknown method when it starts, with a longer message.
    """
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    return list(QUANTIZATION_METHODS)


def default_sampling(config: "ModelConfig") -> dict[str, float]:
    """Return the sampling parameters of requests that set none: of the model's generation_config.json and of vLLM's flags.

    `--generation-config` and `--override-generation-config` are the flags. `max_tokens` is among the names.

    Touches: `ModelConfig.get_diff_sampling_param`.
    Without it: `GenerationConfig.from_pretrained` of transformers, and the two flags.
    """
    return dict(config.get_diff_sampling_param())


def max_answer_tokens(config: "ModelConfig") -> int | None:
    """Return the upper bound of every answer, in tokens, if vLLM's flags set one. vLLM's own server lowers `max_tokens` to it.

    Touches: `ModelConfig.generation_config`, `ModelConfig.override_generation_config` and `ModelConfig.get_diff_sampling_param`.
    """
    given = config.override_generation_config if config.generation_config in ("auto", "vllm") else config.get_diff_sampling_param()
    limit = given.get("max_new_tokens", given.get("max_tokens"))
    return None if limit is None else int(limit)


def config_hash(config: "VllmConfig") -> str:
    """Return a hash of vLLM's version and of its configuration. It is equal for equal configurations, in every process.

    Touches: `VllmConfig.compute_hash`.
    Without it: a hash of the version and of the flags that vLLM was given.
    """
    return str(config.compute_hash())
