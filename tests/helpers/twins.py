"""Tiny models of transformers with random weights, and the same weights as original checkpoints, in the layout of LLaVA's own code."""

import io
import json
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from helpers.original_checkpoints import LLAVA, sentencepiece_tokenizer
from helpers.server import ROOT
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    MistralConfig,
    PreTrainedModel,
)

Language = Literal["vicuna", "mistral", "yi"]
NAMES = (  # of transformers, and of LLaVA
    ("model.language_model.", "model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
)
SIDE, PATCH = 28, 14
GRIDS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
"""Width and height, as LLaVA writes them. LLaVA-1.6's are 12 times as large."""
TOKENS, ROWS = 640, 704
"""The size of the original vocabulary, and of the converted one."""
VISION = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
TEXT = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
NEXT = {
    "image_aspect_ratio": "anyres", "image_grid_pinpoints": GRIDS, "mm_patch_merge_type": "spatial_unpad", "unfreeze_mm_vision_tower": True,
    "image_crop_resolution": 224, "image_split_resolution": 224, "mm_vision_tower_lr": 2e-6, "tokenizer_padding_side": "right",
}  # fmt: skip
"""The keys of config.json that liuhaotian/llava-v1.6-vicuna-7b has and llava-v1.5-7b has not."""
OWN: dict[Language, dict[str, Any]] = {
    "vicuna": {},
    "mistral": {"rope_theta": 1e6, "sliding_window": None},
    "yi": {"rope_theta": 5e6},
}
"""The fields of the language models, as config.json of the originals writes them."""


def twin(language: Language, *, is_next: bool, **config: Any) -> PreTrainedModel:
    """Return a model with random weights in single precision. `config`: more fields of the language model."""
    torch.manual_seed(1)
    own = OWN[language] | config
    theta = own.pop("rope_theta", 1e4)
    fields = TEXT | own | {"vocab_size": ROWS, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    text = MistralConfig(**fields) if language == "mistral" else LlamaConfig(**fields)
    parts = {"vision_config": CLIPVisionConfig(**VISION), "text_config": text, "image_token_index": TOKENS, "image_seq_length": 4}
    if is_next:
        grids = [[height, width] for width, height in GRIDS]
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**parts, image_grid_pinpoints=grids))
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**parts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / (8 if parameter.dim() > 1 else 16) + (parameter == 1))
    return model.eval()


def original_weights(model: PreTrainedModel, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Return the weights by LLaVA's names, with `tokens` rows in the embeddings and the head."""
    weights = {}
    for name, tensor in model.state_dict().items():
        ours, original = next(pair for pair in NAMES if name.startswith(pair[0]))
        rows = tokens if name in ("lm_head.weight", "model.language_model.embed_tokens.weight") else len(tensor)
        weights[original + name.removeprefix(ours)] = tensor[:rows].clone()
    return weights


def write_original(directory: Path, model: PreTrainedModel, language: Language, *, is_next: bool, **config: Any) -> None:
    """Write a whole original checkpoint with its vision tower, as liuhaotian/llava-v1.6-... have it: safetensors in several files."""
    write_tower(directory / "clip")
    weights = original_weights(model)
    names = list(weights)
    index: dict[str, str] = {}
    for number in (0, 1):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        mine = names[number::2]
        save_file({name: weights[name] for name in mine}, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(mine, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    write_config(directory, language, is_next=is_next, **config)
    write_tokenizer(directory, language)


def write_config(directory: Path, language: Language, *, is_next: bool, **config: Any) -> None:
    mistral = {"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"} if language == "mistral" else {}
    fields = LLAVA | TEXT | OWN[language] | mistral | (NEXT if is_next else {}) | {"vocab_size": TOKENS, "mm_hidden_size": 64}
    (directory / "config.json").write_text(json.dumps(fields | {"mm_vision_tower": str(directory / "clip")} | config))


def write_tower(directory: Path) -> None:
    """Write the configuration of the vision tower, whose weights are in the checkpoint."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION}))


def write_tokenizer(directory: Path, language: Language) -> sentencepiece.SentencePieceProcessor:
    return yi_tokenizer(directory) if language == "yi" else sentencepiece_tokenizer(directory)


def yi_tokenizer(directory: Path, *, user_defined: bool = False) -> sentencepiece.SentencePieceProcessor:
    """Train a tokenizer of 640 tokens with the options of Yi's: other special tokens, and no space before a text.

    `user_defined`: SentencePiece finds the tokens of ChatML in a text. Otherwise it reads them as characters.
    """
    model = io.BytesIO()
    more = ["<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>", "<|im_end|>"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ROOT / "README.md").read_text().splitlines()), model_writer=model, vocab_size=TOKENS, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
        add_dummy_prefix=False, bos_piece="<|startoftext|>", eos_piece="<|endoftext|>", allow_whitespace_only_pieces=True,
        user_defined_symbols=more if user_defined else [], control_symbols=[] if user_defined else more,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<unk>"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(token_id): {"content": text, **flags} for token_id, text in enumerate(("<unk>", "<|startoftext|>", "<|endoftext|>"))}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": True, **special}
    decoder["7"] = {"content": "<|im_end|>", **flags}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    (directory / "special_tokens_map.json").write_text(json.dumps({name: {"content": text} for name, text in special.items()}))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def image_processor() -> LlavaNextImageProcessor:
    """Return the image processor of a LLaVA-NeXT twin."""
    return LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=[[high, wide] for wide, high in GRIDS]
    )
