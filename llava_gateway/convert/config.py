"""Converts the configuration of an original checkpoint."""

import ast
from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig, MistralConfig

from llava_gateway.convert.detect import architecture
from llava_gateway.convert.source import ConvertError
from llava_gateway.convert.tokens import IMAGE, Tokens

Language = Literal["llama", "mistral"]
"""The architecture of the language model. Vicuna and Yi are LLaMAs."""
ARCHITECTURES: dict[str, Language] = {
    "": "llama",
    "LlamaForCausalLM": "llama",
    "LlavaLlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "LlavaMistralForCausalLM": "mistral",
}
"""The language model by the architecture in config.json. A projector's or a LoRA's config.json may name that of its base."""
STRATEGIES = {"patch": "default", "cls_patch": "full"}
"""The value of vision_feature_select_strategy by that of mm_vision_select_feature."""
DTYPES = ("float16", "bfloat16", "float32")
TEXT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias",
    "attention_dropout", "mlp_bias",
)  # fmt: skip
"""The fields of the language model that are copied."""
MAX_GRIDS, MAX_GRIDS_TEXT = 100, 10_000
"""The upper bounds of `image_grid_pinpoints`: entries, and characters if it is a text. LLaVA-1.6 has 5 entries."""


def check_kind(llava: Mapping[str, Any]) -> None:
    """Raise ConvertError if the original checkpoint is of a kind that cannot be converted. `llava`: its config.json."""
    if (name := architecture(llava)) not in ARCHITECTURES:
        raise ConvertError(f"config.json has the architecture {name}; LlavaLlamaForCausalLM and LlavaMistralForCausalLM are converted")
    feature, merge = _feature(llava), llava.get("mm_patch_merge_type") or "flat"
    if feature not in STRATEGIES:
        raise ConvertError(f"config.json has mm_vision_select_feature {feature}; {' and '.join(STRATEGIES)} are converted")
    if not is_next(llava):
        if merge != "flat":
            raise ConvertError(f"config.json has mm_patch_merge_type {merge} without image_aspect_ratio anyres; only flat is converted")
        return
    if merge != "spatial_unpad":
        raise ConvertError(f"config.json has image_aspect_ratio anyres and mm_patch_merge_type {merge}; only spatial_unpad is converted")
    if feature != "patch":
        raise ConvertError(f"config.json has image_aspect_ratio anyres and mm_vision_select_feature {feature}; only patch is converted")


def is_next(llava: Mapping[str, Any]) -> bool:
    """Return whether the original checkpoint is a LLaVA-1.6, which sees images on grids."""
    return llava.get("image_aspect_ratio") == "anyres"


def language_of(llava: Mapping[str, Any]) -> Language:
    """Return the language model of a checkpoint that `check_kind` accepts."""
    return "mistral" if "mistral" in str(llava.get("model_type")) else ARCHITECTURES[architecture(llava)]


def dtype_of(llava: Mapping[str, Any]) -> str:
    """Return the data type of the converted weights: that of config.json, or else float16 as in LLaVA's own code. Raises ConvertError."""
    name = str(llava.get("torch_dtype") or llava.get("dtype") or "float16").removeprefix("torch.")
    if name not in DTYPES:
        raise ConvertError(f"config.json has torch_dtype {name}; {', '.join(DTYPES)} are converted")
    return name


def result_config(
    llava: Mapping[str, Any], tokens: Tokens, rows: int, vision: CLIPVisionConfig, activation: str
) -> LlavaConfig | LlavaNextConfig:
    """Return the configuration of the converted model.

    `rows`: the size of the vocabulary with its padding. `activation`: of the projector. Raises ConvertError.
    """
    strategy = STRATEGIES[_feature(llava)]
    try:
        fields = {
            "vision_config": vision,
            "text_config": _text_config(llava, tokens, rows),
            "image_token_index": tokens.id_of(IMAGE),
            "image_seq_length": (vision.image_size // vision.patch_size) ** 2 + (strategy == "full"),
            "vision_feature_layer": llava.get("mm_vision_select_layer", -2),
            "vision_feature_select_strategy": strategy,
            "projector_hidden_act": activation,
            "tie_word_embeddings": False,
            "dtype": dtype_of(llava),
            # The renderer of prompts reads how the model was trained. The defaults are those of LLaVA's own code.
            "mm_use_im_start_end": bool(llava.get("mm_use_im_start_end", False)),
            "mm_use_im_patch_token": bool(llava.get("mm_use_im_patch_token", True)),
        }
        if is_next(llava):
            grids = _grids(llava, vision.image_size)
            return LlavaNextConfig(**fields, image_grid_pinpoints=grids, architectures=["LlavaNextForConditionalGeneration"])
        return LlavaConfig(**fields, architectures=["LlavaForConditionalGeneration"])
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConvertError(f"config.json makes no LLaVA: {' '.join(str(error).split())}") from error


def _text_config(llava: Mapping[str, Any], tokens: Tokens, rows: int) -> LlamaConfig | MistralConfig:
    fields = {key: llava[key] for key in TEXT_KEYS if llava.get(key) is not None} | {"vocab_size": rows}
    fields |= {f"{name}_token_id": tokens.id_of(f"{name}_token") for name in ("bos", "eos", "pad")}
    if language_of(llava) == "llama":
        return LlamaConfig(**fields)
    if "sliding_window" in llava:  # null is a value of its own here: no window
        fields["sliding_window"] = llava["sliding_window"]
    return MistralConfig(**fields)


def _grids(llava: Mapping[str, Any], side: int) -> list[list[int]]:
    """Return `image_grid_pinpoints` as height and width in pixels. LLaVA writes width and height, as a list or as a text of it.

    The order of the list is kept, since it decides between two grids that suit an image equally. `side`: of the vision tower's square, in
    pixels. Raises ConvertError.
    """
    found: Any = llava.get("image_grid_pinpoints")
    try:
        pairs: Any = ast.literal_eval(found) if isinstance(found, str) and len(found) < MAX_GRIDS_TEXT else found
        grids = [[height, width] for width, height in pairs]
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        grids = []
    sizes = [size for grid in grids for size in grid]
    if not 0 < len(grids) <= MAX_GRIDS or not all(type(size) is int and size > 0 and size % side == 0 for size in sizes):
        needed = f"a list of widths and heights in multiples of {side} is needed"
        raise ConvertError(f"config.json has image_grid_pinpoints {str(found)[:100]}; {needed}")
    return grids


def _feature(llava: Mapping[str, Any]) -> str:
    return str(llava.get("mm_vision_select_feature", "patch"))
