"""Writes a checkpoint directory in the layout of the `llava-hf` models on the Hugging Face hub, which vLLM and transformers load."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from llava_gateway.convert.files import write_processor, write_tokenizer
from llava_gateway.convert.names import hub_name
from llava_gateway.demo.tokenizer import BOS, EOS, IMAGE, PAD, UNK

# LLaVA-1.5's prompt: "USER: <image>\nQuestion ASSISTANT: Answer</s>USER: ...". Images precede the text; a system prompt comes first.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set images = [] -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list -%}
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}
{%- endif -%}
{%- set shown = '<image>\\n' * (images | length) + text -%}
{%- if message['role'] == 'system' -%}
{{ shown + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'ASSISTANT: ' + shown + eos_token }}
{%- else -%}
{{ 'USER: ' + shown + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'ASSISTANT:' }}
{%- endif -%}
"""


def save(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write weights, configuration, tokenizer and processor to `directory`.

    Weights are stored in half precision, but `config.json` says float32: loaders convert them and compute in single precision.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {hub_name(name): tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_processor(
        directory,
        side=model.config.vision_config.image_size,
        patch=model.config.vision_config.patch_size,
        strategy=model.config.vision_feature_select_strategy,
        image_token=IMAGE,
    )
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    write_tokenizer(directory, tokenizer, special, IMAGE, model.config.text_config.max_position_embeddings)
