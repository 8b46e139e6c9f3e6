"""The table of well-known models with their sizes. `llava-gateway models` lists them, and `serve` checks them before a download.

The numbers follow from the `config.json` of each model on the Hugging Face Hub. `tests/unit/memory/test_models.py` computes them again.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """A model with the numbers that decide how much memory it needs."""

    name: str
    """The id on the Hugging Face Hub, or the name of the demo model."""
    model_type: str
    """`model_type` of its config.json."""
    parameters: int
    """The number of all weights: vision tower, projector and language model."""
    quantizable: int
    """The number of weights in the matrices of the language model's layers. Quantization changes only these."""
    kv_bytes: int
    """The size of one token in the KV cache at 16 bits, in bytes."""
    context: int
    """The longest context, in tokens."""


MODELS = (
    KnownModel("llava-demo", "llava", 1_132_640, 565_248, 1_536, 4_096),
    KnownModel("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision", 893_675_552, 357_826_560, 12_288, 32_768),
    KnownModel("llava-hf/llava-interleave-qwen-0.5b-hf", "llava", 864_031_264, 308_281_344, 98_304, 32_768),
    KnownModel("llava-hf/llava-1.5-7b-hf", "llava", 7_063_427_072, 6_476_005_376, 524_288, 4_096),
    KnownModel("llava-hf/llava-v1.6-vicuna-7b-hf", "llava_next", 7_063_431_168, 6_476_005_376, 524_288, 4_096),
    KnownModel("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava_next_video", 7_063_431_168, 6_476_005_376, 524_288, 4_096),
    KnownModel("llava-hf/bakLlava-v1-hf", "llava", 7_566_743_552, 6_979_321_856, 131_072, 32_768),
    KnownModel("llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", 7_566_747_648, 6_979_321_856, 131_072, 32_768),
    KnownModel("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision", 8_030_807_584, 6_525_288_448, 57_344, 32_768),
    KnownModel("llava-hf/llava-interleave-qwen-7b-hf", "llava", 8_141_100_576, 6_476_005_376, 524_288, 32_768),
    KnownModel("xtuner/llava-llama-3-8b-v1_1-transformers", "llava", 8_355_272_704, 6_979_321_856, 131_072, 8_192),
    KnownModel("llava-hf/llama3-llava-next-8b-hf", "llava_next", 8_355_276_800, 6_979_321_856, 131_072, 8_192),
    KnownModel("llava-hf/llava-1.5-13b-hf", "llava", 13_351_494_656, 12_687_769_600, 819_200, 4_096),
    KnownModel("llava-hf/llava-v1.6-vicuna-13b-hf", "llava_next", 13_351_499_776, 12_687_769_600, 819_200, 4_096),
    KnownModel("llava-hf/llava-v1.6-34b-hf", "llava_next", 34_752_083_968, 33_470_545_920, 245_760, 4_096),
)
"""The smallest model first."""


def find_model(name: str) -> KnownModel | None:
    """Return the model of this name. None: it is not in the table."""
    return next((model for model in MODELS if model.name == name), None)
