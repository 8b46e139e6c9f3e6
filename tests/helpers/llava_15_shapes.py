"""A checkpoint in the shapes of `llava-hf/llava-1.5-7b-hf` without its weights, for vLLM's `--load-format dummy`; and a small one.

vLLM then makes random weights in memory, so a benchmark has the real sizes and nothing has to be downloaded or written.
"""

import json
import shutil
import string
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from llava_gateway.demo import CHECKPOINT

Size = Literal["7b", "small"]
FLAGS = ("--load-format", "dummy", "--dtype", "half", "--max-model-len", "4096")
VOCABULARY = 32000
"""Entries of the tokenizer before `<image>` and `<pad>`, as Vicuna's. The model has 62 further rows, which no text has."""
SPECIAL = ("<unk>", "<s>", "</s>")
COPIED = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja")
"""Files of the demo checkpoint that are equal for LLaVA-1.5."""
SMALL_TEXT = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
SMALL_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 64}
"""The sizes that differ in the small checkpoint. Images still have 576 tokens."""


def write_checkpoint(directory: Path, size: Size) -> None:
    """Write all files of a checkpoint except its weights."""
    directory.mkdir(parents=True)
    for name in COPIED:
        shutil.copy(CHECKPOINT / name, directory)
    described = json.loads((CHECKPOINT / "tokenizer_config.json").read_text()) | {"model_max_length": 4096}
    _write(directory / "tokenizer_config.json", described)
    _write(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": VOCABULARY + 1})
    _write(directory / "config.json", _config(size))
    _tokenizer().save(str(directory / "tokenizer.json"))


def _config(size: Size) -> dict[str, Any]:
    text = {
        "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
        "torch_dtype": "float16", "vocab_size": VOCABULARY + 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model", "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    }  # fmt: skip
    if size == "small":
        text, vision = text | SMALL_TEXT, vision | SMALL_VISION
    return {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": VOCABULARY, "model_type": "llava",
        "pad_token_id": VOCABULARY + 1, "projector_hidden_act": "gelu", "text_config": text, "tie_word_embeddings": False,
        "torch_dtype": "float16", "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip


def _tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of VOCABULARY entries: special tokens, bytes, and words of two to four small letters."""
    letters = string.ascii_lowercase
    pairs = [a + b for a in letters for b in letters]
    entries = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [(pair[0], pair[1]) for pair in pairs]
    merges += [(pair, letter) for pair in pairs for letter in letters] + [(first, second) for first in pairs for second in pairs]
    merges = merges[: VOCABULARY - len(entries)]
    entries += [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*SPECIAL, "<image>", "<pad>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return tokenizer


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
