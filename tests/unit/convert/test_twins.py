"""Converted checkpoints compute the logits of transformers' model with the same weights, to the bit."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import original_checkpoints as originals
from helpers.twins import (
    GRIDS,
    TOKENS,
    Language,
    image_processor,
    original_weights,
    twin,
    write_config,
    write_original,
    write_tokenizer,
    yi_tokenizer,
)
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from llava_gateway.cli.convert import main
from llava_gateway.prompts.templates import CURIOUS_HUMAN, CURIOUS_USER

pytestmark = pytest.mark.slow

SIZES = [(30, 20), (28, 28), (100, 9), (9, 100), (200, 150)]
"""Width and height. The images fit different grids."""
BEGINS = {
    "vicuna": (f"{CURIOUS_USER} USER: ", " ASSISTANT:"),
    "mistral": ("[INST] ", " [/INST]"),
    "yi": ("<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n", "<|im_end|><|im_start|>assistant\n"),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread. Several would wait for each other at each layer of the tiny models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def user_message(*, image: bool = True) -> list[dict[str, Any]]:
    text = {"type": "text", "text": " What  is\nthis? Ünï 漢字 1234"}
    return [{"role": "user", "content": [{"type": "image"}, text] if image else [text]}]


def check_is_twin(converted: Path, model: PreTrainedModel, sizes: list[tuple[int, int]]) -> None:
    """Check that the converted checkpoint gives the model's logits and greedy answers, for a text and for images of these sizes."""
    loaded, report = AutoModelForImageTextToText.from_pretrained(converted, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    assert type(loaded) is type(model)
    processor = AutoProcessor.from_pretrained(converted)
    prompts = [processor.apply_chat_template(user_message(image=image), add_generation_prompt=True) for image in (False, True)]
    inputs = [processor(text=prompts[0], return_tensors="pt")]
    inputs += [processor(text=prompts[1], images=picture(size), return_tensors="pt") for size in sizes]
    greedy = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": list(range(TOKENS, model.config.text_config.vocab_size))}
    greedy["eos_token_id"] = loaded.generation_config.eos_token_id  # the twin's own is not that of Yi
    for each in inputs:
        with torch.no_grad():
            wanted, found = (one(**each).logits[..., :TOKENS] for one in (model, loaded))
            assert torch.equal(found, wanted)
            answers = [one.generate(**each, **greedy) for one in (model, loaded)]
        assert torch.equal(*answers)


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(size[0]))
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("language", ["vicuna", "mistral", "yi"])
def test_llava_1_6_gives_the_twins_logits(language: Language, tmp_path: Path) -> None:
    model = twin(language, is_next=True)
    write_original(tmp_path / "src", model, language, is_next=True)
    assert main([str(tmp_path / "src"), str(tmp_path / "dst"), "--max-shard-mb", "1"]) == 0
    check_is_twin(tmp_path / "dst", model, SIZES)
    processor = AutoProcessor.from_pretrained(tmp_path / "dst")
    assert type(processor).__name__ == "LlavaNextProcessor"
    for size in SIZES:
        found, wanted = (each(images=picture(size), return_tensors="pt") for each in (processor.image_processor, image_processor()))
        assert torch.equal(found["pixel_values"], wanted["pixel_values"])
        assert torch.equal(found["image_sizes"], wanted["image_sizes"])
    config = json.loads((tmp_path / "dst" / "config.json").read_bytes())
    assert (config["image_seq_length"], config["image_token_index"], config["text_config"]["vocab_size"]) == (4, TOKENS, 704)
    assert config["image_grid_pinpoints"] == [[height, width] for width, height in GRIDS]
    assert (config["mm_use_im_start_end"], config["mm_use_im_patch_token"]) == (False, False)
    generation = json.loads((tmp_path / "dst" / "generation_config.json").read_bytes())
    assert generation["eos_token_id"] == (7 if language == "yi" else 2)


@pytest.mark.parametrize(("language", "user_defined"), [("vicuna", False), ("mistral", False), ("yi", False), ("yi", True)])
def test_prompt_has_the_tokens_of_llavas_own_code(language: Language, user_defined: bool, tmp_path: Path) -> None:
    """LLaVA tokenizes the texts between images and end tokens separately, each with SentencePiece's space before it, if that adds one."""
    write_original(tmp_path / "src", twin(language, is_next=True), language, is_next=True)
    pieces = yi_tokenizer(tmp_path / "src", user_defined=True) if user_defined else write_tokenizer(tmp_path / "src", language)
    assert main([str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "dst")
    prompt = processor.apply_chat_template(user_message(), add_generation_prompt=True)
    before, after = BEGINS[language]
    assert prompt == f"{before}<image>\n What  is\nthis? Ünï 漢字 1234{after}"
    ids = [] if language == "yi" else [1]
    for part in re.split(r"(<image>|<\|im_end\|>)", prompt):
        ids += {"<image>": [TOKENS], "<|im_end|>": [7]}.get(part) or pieces.encode(part)
    assert processor.tokenizer(prompt)["input_ids"] == ids
    after_image = ids[ids.index(TOKENS) + 1 :]
    assert processor.tokenizer.decode(after_image) == prompt.partition("<image>")[2]
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    assert ("<|im_end|>" in special) == (language == "yi")
    assert ("<|im_start|>" in special) == (6 in ids) == user_defined, "a client's text must not contain a token that ends a message"


def test_llava_1_5_on_mistral_gives_the_twins_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The window of Mistral v0.1 is kept: a prompt that is longer than the window gives other logits without it."""
    model = twin("mistral", is_next=False, sliding_window=16)
    write_original(tmp_path / "src", model, "mistral", is_next=False, sliding_window=16)
    assert main([str(tmp_path / "src"), str(tmp_path / "dst")]) == 1
    assert "give --template vicuna_v1 (BakLLaVA) or mistral_instruct" in capsys.readouterr().err
    assert main([str(tmp_path / "src"), str(tmp_path / "dst"), "--template", "vicuna_v1"]) == 0
    config = json.loads((tmp_path / "dst" / "config.json").read_bytes())
    assert config["text_config"]["sliding_window"] == 16
    check_is_twin(tmp_path / "dst", model, [(28, 28), (100, 9)])


def delta_of(model: PreTrainedModel, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a delta in half precision, and give the model the weights that LLaVA's `apply_delta` makes of it and of the base."""
    delta = {}
    for name, tensor in original_weights(model, TOKENS + 4).items():
        if "vision_tower" in name:
            continue
        delta[name] = tensor.half()
        if name in base:
            delta[name][: len(base[name])] -= base[name]
        if name.endswith("norm.weight"):
            delta[name] = (tensor - 1).half() / 100  # two tuned norms differ little
    applied = {name: tensor.clone() for name, tensor in delta.items()}
    for name, tensor in base.items():
        applied[name][: tensor.shape[0]] += tensor
    state = model.state_dict()
    for name, original in zip(state, original_weights(model), strict=True):
        weight = applied.get(original, state[name].half())
        state[name][: len(weight)] = weight.float()
    return delta


@pytest.mark.parametrize(("name", "template"), [("LLaVA-7b-delta-v0", "llava_v0"), ("LLaVA-13b-delta-v1-1", "vicuna_v1")])
def test_delta_on_its_base_gives_the_twins_logits(name: str, template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The delta has four tokens more than its base: [PAD], <im_patch>, <im_start> and <im_end>. Its projector is taken as it is."""
    model = twin("vicuna", is_next=False)
    torch.manual_seed(2)
    parts = {name: tensor for name, tensor in original_weights(model).items() if "vision_tower" not in name}
    base = {
        name: (torch.randn(tensor.shape) / 8 + (tensor.dim() == 1)).half() for name, tensor in parts.items() if "mm_projector" not in name
    }
    delta = delta_of(model, base)
    originals.write_checkpoint(tmp_path / "base", base, {"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    source = tmp_path / name
    originals.write_checkpoint(source, delta, {}, shards=2)
    vision = {name: tensor for name, tensor in original_weights(model).items() if "vision_tower" in name}
    originals.write_clip(source / "clip", vision, model.config.vision_config.to_dict())
    write_config(source, "vicuna", is_next=False, mm_use_im_start_end=True, mm_use_im_patch_token=True, torch_dtype="float16")
    write_tokenizer(source, "vicuna")
    added = {"[PAD]": 640, "<im_patch>": 641, "<im_start>": 642, "<im_end>": 643}
    (source / "added_tokens.json").write_text(json.dumps(added))
    assert main([str(source), str(tmp_path / "dst")]) == 1
    assert "are a delta; give the LLaMA that it is for as --base" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "dst"), "--base", str(tmp_path / "base")]) == 0
    flags = " --template llava_v0" if template == "llava_v0" else ""
    assert capsys.readouterr().out.endswith(f"llava-gateway serve {tmp_path / 'dst'}{flags}\n")
    model.config.image_token_id = TOKENS + 4
    check_is_twin(tmp_path / "dst", model, [(28, 28), (100, 9)])
    config = json.loads((tmp_path / "dst" / "config.json").read_bytes())
    assert (config["mm_use_im_start_end"], config["mm_use_im_patch_token"]) == (True, True)
    jinja = (tmp_path / "dst" / "chat_template.jinja").read_text()
    assert re.search("Human|USER", jinja)
    assert (CURIOUS_HUMAN in jinja) == (template == "llava_v0")
    assert "<im_start>" not in jinja


def test_base_of_a_llava_1_6_lora_has_the_tuned_projector(tmp_path: Path) -> None:
    """The base of the training was an original LLaVA-1.6, with its vision tower, a newline and another projector."""
    model = twin("mistral", is_next=True)
    tuned = {name: tensor for name, tensor in original_weights(model).items() if "mm_projector" in name or name == "model.image_newline"}
    other = twin("mistral", is_next=True)
    with torch.no_grad():
        for parameter in (*other.model.multi_modal_projector.parameters(), other.model.image_newline):
            parameter.zero_()
    write_original(tmp_path / "base", other, "mistral", is_next=True)
    source = tmp_path / "src"
    source.mkdir()
    write_config(source, "mistral", is_next=True, mm_vision_tower=str(tmp_path / "base" / "clip"))
    torch.save({f"base_model.model.{name}": tensor for name, tensor in tuned.items()}, source / "non_lora_trainables.bin")
    layer = "base_model.model.model.layers.1.self_attn.o_proj"
    torch.save({f"{layer}.lora_A.weight": torch.ones(8, 128), f"{layer}.lora_B.weight": torch.ones(128, 8)}, source / "adapter_model.bin")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    asked = [str(source), str(tmp_path / "dst"), "--base", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")]
    assert main(asked) == 0
    check_is_twin(tmp_path / "dst", model, [(100, 9)])
