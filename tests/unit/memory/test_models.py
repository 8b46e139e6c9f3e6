"""The numbers of the table of models follow from the models' own configurations."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from llava_gateway.demo import CHECKPOINT
from llava_gateway.memory.models import MODELS, KnownModel, find_model

pytestmark = pytest.mark.slow

CLIP = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14,
    projection_dim=768,
)  # fmt: skip
SIGLIP = SiglipVisionConfig(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16, image_size=384, patch_size=14,
    vision_use_head=False,
)  # fmt: skip


def sizes(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, context: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": context,
    }  # fmt: skip


VICUNA_7B = LlamaConfig(**sizes(32064, 4096, 11008, 32, 32, 32, 4096))
VICUNA_13B = LlamaConfig(**sizes(32064, 5120, 13824, 40, 40, 40, 4096))
MISTRAL = MistralConfig(**sizes(32064, 4096, 14336, 32, 32, 8, 32768))
LLAMA_3 = LlamaConfig(**sizes(128320, 4096, 14336, 32, 32, 8, 8192))
YI = LlamaConfig(**sizes(64064, 7168, 20480, 60, 56, 8, 4096))
QWEN_1_5_SMALL = Qwen2Config(**sizes(152000, 1024, 2816, 24, 16, 16, 32768), tie_word_embeddings=True)
QWEN_1_5_7B = Qwen2Config(**sizes(152000, 4096, 11008, 32, 32, 32, 32768))
QWEN_2_SMALL = Qwen2Config(**sizes(152000, 896, 4864, 24, 14, 2, 32768), tie_word_embeddings=True)
QWEN_2_7B = Qwen2Config(**sizes(152128, 3584, 18944, 28, 28, 4, 32768))
TOWERS_AND_LANGUAGE_MODELS: dict[str, tuple[PretrainedConfig, PretrainedConfig]] = {
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (SIGLIP, QWEN_2_SMALL),
    "llava-hf/llava-interleave-qwen-0.5b-hf": (SIGLIP, QWEN_1_5_SMALL),
    "llava-hf/llava-1.5-7b-hf": (CLIP, VICUNA_7B),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (CLIP, VICUNA_7B),
    "llava-hf/LLaVA-NeXT-Video-7B-hf": (CLIP, VICUNA_7B),
    "llava-hf/bakLlava-v1-hf": (CLIP, MISTRAL),
    "llava-hf/llava-v1.6-mistral-7b-hf": (CLIP, MISTRAL),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (SIGLIP, QWEN_2_7B),
    "llava-hf/llava-interleave-qwen-7b-hf": (SIGLIP, QWEN_1_5_7B),
    "xtuner/llava-llama-3-8b-v1_1-transformers": (CLIP, LLAMA_3),
    "llava-hf/llama3-llava-next-8b-hf": (CLIP, LLAMA_3),
    "llava-hf/llava-1.5-13b-hf": (CLIP, VICUNA_13B),
    "llava-hf/llava-v1.6-vicuna-13b-hf": (CLIP, VICUNA_13B),
    "llava-hf/llava-v1.6-34b-hf": (CLIP, YI),
}
"""The sizes in the config.json of each model of the hub."""
CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration),
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration),
    "llava_next_video": (LlavaNextConfig, LlavaNextForConditionalGeneration),  # it pools frames without further weights
    "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration),
}


@pytest.mark.parametrize("known", MODELS, ids=lambda known: known.name)
def test_sizes_equal_those_of_the_configuration(known: KnownModel) -> None:
    kind, model_class = CLASSES[known.model_type]
    if known.name == "llava-demo":
        config = AutoConfig.from_pretrained(CHECKPOINT)
    else:
        tower, language = TOWERS_AND_LANGUAGE_MODELS[known.name]
        config = kind(vision_config=tower, text_config=language, tie_word_embeddings=language.tie_word_embeddings)
    with torch.device("meta"):
        model = model_class(config)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    matrices = [layer.weight.numel() for name, layer in layers.items() if "language_model.layers." in name]
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 2
    found = (sum(weight.numel() for weight in model.parameters()), sum(matrices), kv_bytes, text.max_position_embeddings)
    assert found == (known.parameters, known.quantizable, known.kv_bytes, known.context)


def test_table_is_ordered_for_the_search_of_the_largest_model_that_fits() -> None:
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    assert names[0] == "llava-demo"
    assert find_model("llava-hf/llava-1.5-7b-hf") in MODELS
    assert find_model("llava-hf/llava-1.5-7b") is None


def test_demo_model_has_the_type_of_its_checkpoint() -> None:
    demo = find_model("llava-demo")
    assert demo
    assert demo.model_type == json.loads((CHECKPOINT / "config.json").read_text())["model_type"]
