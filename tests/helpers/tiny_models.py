"""Tiny checkpoints with random weights of each supported architecture, in the layout of the hub's `llava-hf` models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from llava_gateway.demo import CHECKPOINT

NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Height and width, as in llava-hf/llava-v1.6-mistral-7b-hf."""
ONEVISION_GRIDS = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
"""As in llava-hf/llava-onevision-qwen2-7b-ov-hf."""
CONTEXT = 32768
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 704, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 4,
}  # fmt: skip
GROUP = 32
KEPT = ["vision_tower", "multi_modal_projector", "lm_head"]
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm", "modules_to_not_convert": KEPT}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
INT8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
    "ignore": ["re:.*" + each + ".*" for each in KEPT],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
INST = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ message['content'][0]['text'] + eos_token }}{%- else -%}[INST] {{ '' -}}
{%- for part in message['content'] -%}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{%- endfor -%}
{{ ' [/INST]' }}{%- endif -%}
{%- endfor -%}
"""
"""The chat template of LLaVA-NeXT on Mistral."""
VIDEO_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != 'system' -%}{{ message['role'].upper() + ': ' }}{%- endif -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}{{ '<image>\n' }}{%- endfor -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'video') -%}{{ '<video>\n' }}{%- endfor -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{ part['text'] + ' ' }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
"""A chat template in the manner of LLaVA-NeXT-Video and LLaVA-OneVision: images first, then videos, then texts."""


def bakllava(directory: Path) -> None:
    """Write a LLaVA-1.5 on Mistral that uses all 577 features of the vision tower, as some checkpoints do; with AWQ weights."""
    config = LlavaConfig(
        vision_config=_clip(), text_config=MistralConfig(**TEXT), image_token_index=3, vision_feature_select_strategy="full"
    )
    config.quantization_config = AWQ
    _save(LlavaForConditionalGeneration, config, directory, "LlavaProcessor", _clip_processor("CLIPImageProcessor"))


def siglip(directory: Path) -> None:
    """Write a LLaVA on Llama with SigLIP, which has no class token and resizes images to 384 x 384 pixels: 27 x 27 patches."""
    config = LlavaConfig(
        vision_config=_siglip(), text_config=LlamaConfig(**TEXT), image_token_index=3, vision_feature_select_strategy="full"
    )
    config.quantization_config = INT8
    _save(LlavaForConditionalGeneration, config, directory, "LlavaProcessor", _siglip_processor("SiglipImageProcessor"), extra=0)


def next_mistral(directory: Path) -> None:
    """Write a LLaVA-NeXT on Mistral with GPTQ weights."""
    config = LlavaNextConfig(vision_config=_clip(), text_config=MistralConfig(**TEXT), image_token_index=3, image_grid_pinpoints=NEXT_GRIDS)
    config.quantization_config = GPTQ
    processor = _clip_processor("LlavaNextImageProcessor") | {"image_grid_pinpoints": NEXT_GRIDS}
    _save(LlavaNextForConditionalGeneration, config, directory, "LlavaNextProcessor", processor, template=INST)


def onevision(directory: Path) -> None:
    """Write a LLaVA-OneVision on Qwen2 and SigLIP."""
    config = LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=Qwen2Config(**TEXT),
        image_token_index=3,
        video_token_index=640,
        image_grid_pinpoints=ONEVISION_GRIDS,
    )
    processor = _siglip_processor("LlavaOnevisionImageProcessor") | {"image_grid_pinpoints": ONEVISION_GRIDS}
    _save(LlavaOnevisionForConditionalGeneration, config, directory, "LlavaOnevisionProcessor", processor, template=VIDEO_TEMPLATE)


def next_video(directory: Path) -> None:
    """Write a LLaVA-NeXT-Video on Llama."""
    config = LlavaNextVideoConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=3,
        video_token_index=640,
        image_grid_pinpoints=NEXT_GRIDS,
    )
    processor = _clip_processor("LlavaNextImageProcessor") | {"image_grid_pinpoints": NEXT_GRIDS}
    _save(LlavaNextVideoForConditionalGeneration, config, directory, "LlavaNextVideoProcessor", processor, template=VIDEO_TEMPLATE)
    _write(directory / "video_preprocessor_config.json", processor | {"video_processor_type": "LlavaNextVideoVideoProcessor"})


TINY: dict[str, Callable[[Path], None]] = {
    "bakllava": bakllava, "siglip": siglip, "next": next_mistral, "onevision": onevision,
}  # fmt: skip
"""Models that take images."""


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, image_size=336, projection_dim=64)


def _siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**VISION, image_size=384, vision_use_head=False)


def _clip_processor(kind: str) -> dict[str, Any]:
    return _image_processor(kind, CLIP_MEAN, CLIP_STD) | {
        "size": {"shortest_edge": 336}, "do_center_crop": True, "crop_size": {"height": 336, "width": 336},
    }  # fmt: skip


def _siglip_processor(kind: str) -> dict[str, Any]:
    return _image_processor(kind, [0.5] * 3, [0.5] * 3) | {"size": {"height": 384, "width": 384}}


def _image_processor(kind: str, mean: list[float], std: list[float]) -> dict[str, Any]:
    return {
        "image_processor_type": kind, "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": mean, "image_std": std, "do_convert_rgb": True,
    }  # fmt: skip


def _save(
    kind: type[PreTrainedModel], config: PretrainedConfig, directory: Path, processor: str, image_processor: dict[str, Any], *,
    extra: int = 1, template: str = "",
) -> None:  # fmt: skip
    directory.mkdir(parents=True)
    torch.manual_seed(0)
    config.architectures = [kind.__name__]
    config.dtype = "float32"
    config.tie_word_embeddings = False
    config.save_pretrained(directory)
    weights = {_hub_name(name): tensor.detach().contiguous() for name, tensor in kind(config).state_dict().items()}
    if quantized := getattr(config, "quantization_config", None):
        weights = _quantized(weights, quantized["quant_method"])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<video>", special=True, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    shutil.copy(CHECKPOINT / "generation_config.json", directory)
    described = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    _write(directory / "tokenizer_config.json", described | {"processor_class": processor, "model_max_length": CONTEXT})
    (directory / "chat_template.jinja").write_text(template or (CHECKPOINT / "chat_template.jinja").read_text())
    _write(directory / "preprocessor_config.json", image_processor)
    side = config.vision_config.image_size // config.vision_config.patch_size
    counts = {"num_image_tokens": side * side} if "Onevision" in processor else {"patch_size": 14, "num_additional_image_tokens": extra}
    strategy = config.vision_feature_select_strategy
    _write(
        directory / "processor_config.json",
        {"processor_class": processor, "image_token": "<image>", "vision_feature_select_strategy": strategy, **counts},
    )


def _quantized(weights: dict[str, torch.Tensor], method: str) -> dict[str, torch.Tensor]:
    """Replace the language model's matrices (out, in) by random numbers in the layout of a quantization method."""
    found = {}
    for name, tensor in weights.items():
        layer, (rows, columns) = name.removesuffix(".weight"), (*tensor.shape, 0)[:2]
        if ".layers." not in name or not name.startswith("language_model") or not layer.endswith("_proj"):
            found[name] = tensor
        elif method == "compressed-tensors":
            found[name] = torch.randint(-127, 127, (rows, columns), dtype=torch.int8)
            found[f"{layer}.weight_scale"] = torch.full((rows, 1), 1e-3)
        else:
            packed = (columns, rows // 8) if method == "awq" else (columns // 8, rows)  # eight numbers of 4 bits each
            found[f"{layer}.qweight"] = _random_bits(*packed)
            found[f"{layer}.qzeros"] = _random_bits(columns // GROUP, rows // 8)
            found[f"{layer}.scales"] = torch.full((columns // GROUP, rows), 1e-3, dtype=torch.float16)
            if method == "gptq":
                found[f"{layer}.g_idx"] = torch.arange(columns, dtype=torch.int32) // GROUP
    return found


def _random_bits(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


def _hub_name(name: str) -> str:
    for ours, hub in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ):
        if name.startswith(ours):
            return hub + name.removeprefix(ours)
    raise ValueError(f"a weight without a hub name: {name}")


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
