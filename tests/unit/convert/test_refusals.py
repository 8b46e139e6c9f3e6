"""Checkpoints that cannot be converted are refused in one line."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import original_checkpoints as originals
from helpers.conversion import check_is_the_demo, write_base
from torch import Tensor

from llava_gateway.cli.convert import main
from llava_gateway.convert.detect import advice, original_kind
from llava_gateway.demo import CHECKPOINT

pytestmark = pytest.mark.slow

Spoil = Callable[[Path], list[str] | None]
"""Breaks a good checkpoint, and returns more arguments, if any."""
NEXT = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": [[336, 672]]}


def config(**values: object) -> Spoil:
    def spoil(source: Path) -> None:
        path = source / "config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | values))

    return spoil


def weights(**values: Tensor | None) -> Spoil:
    def spoil(source: Path) -> None:
        everything = torch.load(source / "pytorch_model.bin") | {name.replace("__", "."): tensor for name, tensor in values.items()}
        torch.save({name: tensor for name, tensor in everything.items() if tensor is not None}, source / "pytorch_model.bin")

    return spoil


def adapter(**values: object) -> Spoil:
    def spoil(source: Path) -> list[str]:
        write_base(source / "base")
        torch.save({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(2, 4)}, source / "adapter_model.bin")
        torch.save({}, source / "non_lora_trainables.bin")
        (source / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | values))
        return ["--base", str(source / "base")]

    return spoil


def delta(**values: Tensor) -> Spoil:
    def spoil(source: Path) -> list[str]:
        write_base(source / "base")
        weights(model__norm__weight=torch.zeros(128), **values)(source)
        return ["--base", str(source / "base")]

    return spoil


def delta_as_base(source: Path) -> list[str]:
    weights(model__norm__weight=torch.zeros(128))(source)
    return ["--base", str(source)]


def loadable(module: str, rank: int) -> Spoil:
    """Makes a LoRA for a module with 128 inputs and 128 outputs, or one without weights, and asks for an adapter."""

    def spoil(source: Path) -> list[str]:
        asked = [*(adapter(r=rank)(source) or []), "--adapter", "adapter"]
        outputs = 640 if module == "lm_head" else 128
        pair = {"A": torch.ones(rank, 128), "B": torch.ones(outputs, rank)} if module else {}
        torch.save({f"base_model.model.{module}.lora_{half}.weight": each for half, each in pair.items()}, source / "adapter_model.bin")
        return asked

    return spoil


def test_original_checkpoints_are_recognised(tmp_path: Path, converted: Path) -> None:
    assert original_kind(CHECKPOINT) is None
    assert original_kind(converted) is None
    assert original_kind(tmp_path / "nothing") is None
    (tmp_path / "config.json").write_text("{")
    assert original_kind(tmp_path) is None
    source = converted.parent / "llava-v1.5-demo"
    assert original_kind(source) == "merged"
    assert f"`llava-gateway convert {source} {source}-hf`" in str(advice(source))
    difference = tmp_path / "LLaVA-7b-delta-v0"
    shutil.copytree(source, difference)
    assert f"{difference}-hf --base BASE` (BASE is the LLaMA that the delta is for)" in str(advice(difference))


def test_serve_names_the_conversion_command(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "my llava"
    originals.demo_original(source, clip)
    asked = [sys.executable, "-m", "llava_gateway", "serve", str(source), "--port", "58127"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 1
    said = re.search("original LLaVA checkpoint; run `llava-gateway convert (.*)`, and serve (.*)", ended.stderr)
    assert said
    assert main(shlex.split(said[1])) == 0
    check_is_the_demo(Path(said[2]))


def pickled_code(source: Path) -> None:
    torch.save({"a": Path("x")}, source / "pytorch_model.bin")


def lfs_pointer(source: Path) -> None:
    (source / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def cut_off(source: Path) -> None:
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:100_000])


def missing_shard(source: Path) -> None:
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))


def no_weights(source: Path) -> None:
    (source / "pytorch_model.bin").unlink()


def no_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()


def added_token(source: Path) -> None:
    (source / "added_tokens.json").write_text('{"<unk>": 7}')


def no_bos(source: Path) -> None:
    path = source / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"post_processor": None}))


def projector_alone(source: Path) -> None:
    (source / "pytorch_model.bin").rename(source / "mm_projector.bin")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (config(architectures=["LlavaMptForCausalLM"]), "LlavaMptForCausalLM; LlavaLlamaForCausalLM and LlavaMistralForCausalLM are"),
        (config(architectures=["LlavaMistralForCausalLM"]), "give --template vicuna_v1 (BakLLaVA) or mistral_instruct"),
        (config(image_aspect_ratio="anyres"), "image_aspect_ratio anyres and mm_patch_merge_type flat; only spatial_unpad"),
        (config(mm_patch_merge_type="spatial_unpad"), "mm_patch_merge_type spatial_unpad without image_aspect_ratio anyres"),
        (config(**NEXT), "1 weights are missing, the first is image_newline"),
        (config(**NEXT, mm_vision_select_feature="cls_patch"), "anyres and mm_vision_select_feature cls_patch; only patch"),
        (config(**NEXT | {"image_grid_pinpoints": "(1x1),...,(6x6)"}), "image_grid_pinpoints (1x1),...,(6x6); a list of widths"),
        (config(**NEXT | {"image_grid_pinpoints": [[336, 670]]}), "in multiples of 336 is needed"),
        (config(**NEXT | {"image_grid_pinpoints": [[336, 336]] * 101}), "in multiples of 336 is needed"),
        (config(**NEXT | {"image_grid_pinpoints": None}), "image_grid_pinpoints None"),
        (config(mm_vision_tower="./checkpoints/clip"), "--vision-tower: there is no directory ./checkpoints/clip"),
        (config(mm_vision_tower="nobody/has-this"), "run `hf download nobody/has-this --local-dir DIR`"),
        (config(hidden_size=64), "is [704, 128], and config.json makes it [704, 64]"),
        (config(hidden_size="wide"), "config.json makes no LLaVA"),
        (config(torch_dtype="int8"), "torch_dtype int8"),
        (config(mm_vision_select_feature="cls"), "mm_vision_select_feature cls"),
        (config(vision_config={}), "in the Hugging Face layout already"),
        (weights(model__image_newline=torch.ones(1)), "image_newline has no place in the model that config.json describes"),
        (
            weights(model__norm__weight=torch.full((128,), 1e-3)),
            "are a delta; give the LLaMA that it is for as --base; it says that this was",
        ),
        (delta(), "the name src does not say whether the delta is v0 or v1; give --template llava_v0 or vicuna_v1"),
        (delta(model__layers__0__more=torch.ones(1)), "the delta has model.layers.0.more, which the base does not have"),
        (
            delta(model__layers__0__mlp__up_proj__weight=torch.ones(9, 9)),
            "up_proj.weight is [320, 128] in the base, and [9, 9] in the delta",
        ),
        (delta(lm_head__weight=torch.ones(700, 9)), "lm_head.weight is [640, 128] in the base, and [700, 9] in the delta"),
        (delta_as_base, "--base: the weights of"),
        (weights(model__norm__weight=None), "the weight model.norm.weight is missing"),
        (weights(lm_head__weight=torch.ones(3)), "the weight lm_head.weight is missing, or has not 2 dimensions"),
        (weights(model__layers__1__mlp__up_proj__weight=None), "layers.1.mlp.up_proj.weight"),
        (weights(model__mm_projector__4__weight=torch.ones(1)), "neither linear nor mlp2x_gelu"),
        (weights(strange=torch.ones(1)), "strange"),
        (pickled_code, "any other pickle could run code"),
        (lfs_pointer, "run `git lfs pull`"),
        (cut_off, "pytorch_model.bin cannot be read"),
        (missing_shard, "pytorch_model-1.bin is missing"),
        (no_weights, "has no weights"),
        (no_tokenizer, "has no tokenizer"),
        (added_token, "added_tokens.json has <unk> as 7, and the tokenizer as 0"),
        (no_bos, "the tokenizer does not begin a text with <s>"),
        (projector_alone, "as --base; it says that this was lmsys/vicuna-7b-v1.5"),
        (lambda source: ["--base", str(source)], "--base is for adapters, projectors and deltas"),
        (lambda source: ["--adapter", "adapter"], "is no LoRA; --adapter is for a LoRA"),
        (lambda source: ["--adapter", "dst"], "--adapter dst is the directory of the model"),
        (lambda source: ["--adapter", str(source)], "is there already"),
        (lambda source: ["--vision-tower", str(source)], "is no CLIP"),
        (adapter(), "model.layers.9.self_attn.q_proj.weight, which the base does not have"),
        (adapter(use_dora=True), "use_dora"),
        (adapter(r=0), "is no configuration of a LoRA"),
        (loadable("lm_head", 2), "the adapter is for lm_head.weight, which vLLM cannot adapt at run time"),
        (loadable("model.layers.0.self_attn.q_proj", 513), "the adapter has rank 513, and vLLM takes at most 512"),
        (loadable("model.layers.0.mlp.up_proj", 2), "model.layers.0.mlp.up_proj.weight is [320, 128] in the base, and the LoRA of rank 2"),
        (loadable("", 2), "the adapter has no weights"),
    ],
)
def test_unsuitable_checkpoint_is_refused_in_one_line(
    spoil: Spoil, said: str, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "src"
    originals.demo_original(source, clip)
    more = spoil(source) or []
    assert main([str(source), "dst", *more]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert said in complaint
    assert not [*tmp_path.glob("dst*"), *tmp_path.glob("adapter*")]
