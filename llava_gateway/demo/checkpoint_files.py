"""Writes a checkpoint directory in the layout of the hub's `llava-hf` models, which vLLM and transformers both load."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from llava_gateway.demo.tokenizer import BOS, EOS, IMAGE, PAD, UNK

# LLaVA-1.5's prompt: "USER: <image>\nQuestion ASSISTANT: Answer</s>USER: ...", images before the text, a system prompt in front.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set images = [] -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list -%}
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}
{%- endif -%}
{%- if message['role'] == 'system' -%}
{{ text + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'ASSISTANT: ' + text + eos_token }}
{%- else -%}
{{ 'USER: ' + '<image>\\n' * (images | length) + text + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'ASSISTANT:' }}
{%- endif -%}
"""
RENAMED = (  # transformers 5's names to the hub's
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def save(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Weights in half precision, computed in single: `config.json` says float32, and loaders convert."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {_hub_name(name): tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    side = model.config.vision_config.image_size
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }  # fmt: skip
    _write(directory / "preprocessor_config.json", image_processor)
    _write(
        directory / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": model.config.vision_config.patch_size,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
        },
    )
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaProcessor",
            "bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD, "image_token": IMAGE,
            "extra_special_tokens": {"image_token": IMAGE},
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.text_config.max_position_embeddings,
        },
    )  # fmt: skip


def _hub_name(name: str) -> str:
    for ours, hub in RENAMED:
        if name.startswith(ours):
            return hub + name.removeprefix(ours)
    raise ValueError(f"a weight without a hub name: {name}")


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
