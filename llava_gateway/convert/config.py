"""Converts the configuration of an original checkpoint."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from llava_gateway.convert.detect import architecture
from llava_gateway.convert.source import ConvertError
from llava_gateway.convert.tokens import IMAGE, Tokens

STRATEGIES = {"patch": "default", "cls_patch": "full"}
"""The value of vision_feature_select_strategy by that of mm_vision_select_feature."""
DTYPES = ("float16", "bfloat16", "float32")
TEXT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias",
    "attention_dropout", "mlp_bias",
)  # fmt: skip
"""The fields of the language model that are copied."""


def check_kind(llava: Mapping[str, Any]) -> None:
    """Raise ConvertError if the original checkpoint is not a LLaVA v1 or v1.5 on LLaMA. `llava`: its config.json."""
    if (name := architecture(llava)) not in ("", "LlavaLlamaForCausalLM", "LlamaForCausalLM"):
        raise ConvertError(f"config.json has the architecture {name}; LLaVA v1 and v1.5 are converted (LlavaLlamaForCausalLM)")
    if llava.get("image_aspect_ratio") == "anyres" or llava.get("mm_patch_merge_type", "flat") != "flat":
        raise ConvertError("config.json is of LLaVA-1.6 (anyres); LLaVA v1 and v1.5 are converted")
    if (feature := _feature(llava)) not in STRATEGIES:
        raise ConvertError(f"config.json has mm_vision_select_feature {feature}; {' and '.join(STRATEGIES)} are converted")


def dtype_of(llava: Mapping[str, Any]) -> str:
    """Return the data type of the converted weights: that of config.json, or else float16 as in LLaVA's own code. Raises ConvertError."""
    name = str(llava.get("torch_dtype") or llava.get("dtype") or "float16").removeprefix("torch.")
    if name not in DTYPES:
        raise ConvertError(f"config.json has torch_dtype {name}; {', '.join(DTYPES)} are converted")
    return name


def result_config(llava: Mapping[str, Any], tokens: Tokens, rows: int, vision: CLIPVisionConfig, activation: str) -> LlavaConfig:
    """Return the configuration of the converted model.

    `rows`: the size of the vocabulary with its padding. `activation`: of the projector. Raises ConvertError.
    """
    strategy = STRATEGIES[_feature(llava)]
    ids = {f"{name}_token_id": tokens.id_of(f"{name}_token") for name in ("bos", "eos", "pad")}
    try:
        return LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**{key: llava[key] for key in TEXT_KEYS if llava.get(key) is not None}, vocab_size=rows, **ids),
            image_token_index=tokens.id_of(IMAGE),
            image_seq_length=(vision.image_size // vision.patch_size) ** 2 + (strategy == "full"),
            vision_feature_layer=llava.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy=strategy,
            projector_hidden_act=activation,
            tie_word_embeddings=False,
            dtype=dtype_of(llava),
            architectures=["LlavaForConditionalGeneration"],
        )
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConvertError(f"config.json makes no LLaVA: {' '.join(str(error).split())}") from error


def _feature(llava: Mapping[str, Any]) -> str:
    return str(llava.get("mm_vision_select_feature", "patch"))
