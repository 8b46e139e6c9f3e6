"""Checkpoints in the layout of LLaVA's own code: names of tensors, keys of config.json, files."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from helpers.requests import image_part
from helpers.server import ROOT
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import COLORS, data_uri, encode

NAMES = (  # in the hub's layout and in the original
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("vision_tower.", "model.vision_tower.vision_tower."),
)
LLAVA = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "bos_token_id": 1,
    "eos_token_id": 2, "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "hidden_act": "silu",
    "image_aspect_ratio": "pad", "initializer_range": 0.02, "max_length": 4096, "max_position_embeddings": 4096,
    "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None, "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float32", "transformers_version": "4.31.0", "tune_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": False,
    "use_cache": True, "use_mm_proj": True,
}  # fmt: skip
"""The keys of config.json that do not depend on the model's size."""
DEMO = {
    "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3,
    "vocab_size": 640, "mm_hidden_size": 96,
}  # fmt: skip


RANK, ALPHA = 20, 40
"""Of the LoRAs that `write_lora` writes."""


def demo_weights() -> dict[str, Tensor]:
    """Return the demo model's weights under the names of the original layout, with the vision tower."""
    weights = {}
    for name, tensor in load_file(CHECKPOINT / "model.safetensors").items():
        hub, original = next(pair for pair in NAMES if name.startswith(pair[0]))
        weights[name.replace(hub, original, 1)] = tensor.float()
    return weights


def without_vision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if "vision_tower" not in name}


def write_checkpoint(directory: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], shards: int = 1) -> None:
    """Write pickles, with an index if there are several, and the extra weights that old versions of transformers saved."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    everything = dict(weights) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    if shards == 1:
        torch.save(everything, directory / "pytorch_model.bin")
        return
    names = list(everything)
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        mine = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        torch.save({name: everything[name] for name in mine}, directory / file)
        index |= dict.fromkeys(mine, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_clip(directory: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write both halves of a CLIP, as in openai/clip-vit-large-patch14-336. `config`: that of the vision half."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(
        json.dumps({"architectures": ["CLIPModel"], "model_type": "clip", "vision_config": dict(config)})
    )
    vision = {name.removeprefix("model.vision_tower.vision_tower."): tensor for name, tensor in weights.items() if "vision_tower" in name}
    others = {
        "logit_scale": torch.tensor(4.6),
        "text_model.final_layer_norm.weight": torch.ones(8),
        "visual_projection.weight": torch.ones(8, 8),
    }
    torch.save(vision | others | {"vision_model.embeddings.position_ids": torch.arange(577)[None]}, directory / "pytorch_model.bin")


def demo_clip(directory: Path) -> None:
    write_clip(directory, demo_weights(), json.loads((CHECKPOINT / "config.json").read_bytes())["vision_config"])


def demo_tokenizer(directory: Path) -> None:
    """Write the demo model's tokenizer without tokens for images and padding, as in the original."""
    tokenizer = (CHECKPOINT / "tokenizer.json").read_text().replace('"<image>"', '"<unused-3>"').replace('"<pad>"', '"<unused-4>"')
    (directory / "tokenizer.json").write_text(tokenizer)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<s>"}}))


def sentencepiece_tokenizer(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """Train a tokenizer of 640 tokens on the README, with the options of LLaMA's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ROOT / "README.md").read_text().splitlines()), model_writer=model, vocab_size=640, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def demo_original(directory: Path, tower: Path | str, shards: int = 1, **config: Any) -> None:
    """Write the demo model as a LLaVA v1.5 without its vision tower."""
    write_checkpoint(directory, without_vision(demo_weights()), LLAVA | DEMO | {"mm_vision_tower": str(tower)} | config, shards)
    demo_tokenizer(directory)


def write_lora(directory: Path, adapter: Mapping[str, Tensor], tower: Path, **config: Any) -> None:
    """Write a LoRA of the demo model as LLaVA's training does: the demo's projector is the tuned one. `adapter`: by LLaVA's names."""
    directory.mkdir()
    torch.save({f"base_model.model.{name}": tensor for name, tensor in adapter.items()}, directory / "adapter_model.bin")
    projector = {f"base_model.model.{name}": tensor for name, tensor in demo_weights().items() if "mm_projector" in name}
    torch.save(projector, directory / "non_lora_trainables.bin")
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "fan_in_fan_out": False, "modules_to_save": None}
    (directory / "adapter_config.json").write_text(json.dumps(lora | {"base_model_name_or_path": "lmsys/vicuna-7b-v1.5"} | config))
    (directory / "config.json").write_text(json.dumps(LLAVA | DEMO | {"mm_vision_tower": str(tower)}))


def random_original(directory: Path, layers: int = 1, intermediate: int = 96, **config: Any) -> dict[str, Tensor]:
    """Write a LLaVA v1 with a linear projector, and its vision tower in `clip`; return the weights without the vision tower.

    The tower takes 28 pixels, 4 patches of width 32. The text model's width is 64.
    """
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).half() / 8

    weights = {"model.embed_tokens.weight": weight(640, 64)}
    for layer in (f"model.layers.{number}." for number in range(layers)):
        weights |= {f"{layer}self_attn.{name}_proj.weight": weight(64, 64) for name in "qkvo"}
        weights |= {f"{layer}mlp.{name}_proj.weight": weight(intermediate, 64) for name in ("gate", "up")}
        weights |= {f"{layer}mlp.down_proj.weight": weight(64, intermediate)}
        weights |= {f"{layer}{name}_layernorm.weight": torch.ones(64).half() for name in ("input", "post_attention")}
    weights |= {"model.norm.weight": torch.ones(64).half(), "lm_head.weight": weight(640, 64)}
    weights |= {"model.mm_projector.weight": weight(64, 32), "model.mm_projector.bias": weight(64)}
    tower = "model.vision_tower.vision_tower.vision_model."
    vision = {f"{tower}embeddings.class_embedding": weight(32), f"{tower}embeddings.patch_embedding.weight": weight(32, 3, 14, 14)}
    vision |= {f"{tower}embeddings.position_embedding.weight": weight(5, 32)}
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj": (32, 32) for name in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (48, 32), "mlp.fc2": (32, 48), "layer_norm1": (32,), "layer_norm2": (32,)}
    for layer in (f"{tower}encoder.layers.{number}." for number in range(2)):
        for name, shape in shapes.items():
            vision |= {f"{layer}{name}.weight": weight(*shape), f"{layer}{name}.bias": weight(shape[0])}
    for name in "pre_layrnorm", "post_layernorm":
        vision |= {f"{tower}{name}.weight": weight(32), f"{tower}{name}.bias": weight(32)}
    size = {"hidden_size": 64, "intermediate_size": intermediate, "num_attention_heads": 2, "num_hidden_layers": layers, "vocab_size": 640}
    kind = {"mm_projector_type": "linear", "mm_hidden_size": 32, "torch_dtype": "float16", "image_aspect_ratio": None}
    write_checkpoint(directory, weights, LLAVA | size | kind | {"mm_vision_tower": str(directory / "clip")} | config)
    clip = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    write_clip(directory / "clip", vision, clip)
    return weights


def wide_image() -> dict[str, Any]:
    """Return an image part with an image twice as wide as high. A crop shows only two of its four colours."""
    image = Image.new("RGB", (400, 200))
    for left, name in enumerate(("red", "green", "blue", "white")):
        image.paste(COLORS[name], (left * 100, 0, left * 100 + 100, 200))
    return image_part(data_uri(encode(image)))
