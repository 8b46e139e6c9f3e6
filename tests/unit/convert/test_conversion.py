"""Converted checkpoints have the same weights and tokenizers as the originals, and a conversion goes on after a kill."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers import original_checkpoints as originals
from helpers.conversion import ADDED_ROWS, check_is_the_demo, command, weights_of, write_base
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_gateway.cli.convert import main
from llava_gateway.prompts.templates import CURIOUS_USER

pytestmark = pytest.mark.slow

ADAPTED = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj")
"""Layers of the demo model that a LoRA adapts, by LLaVA's names."""


def test_converted_checkpoint_has_the_demos_weights_and_files(converted: Path) -> None:
    check_is_the_demo(converted)
    index = json.loads((converted / "model.safetensors.index.json").read_bytes())["weight_map"]
    shards = sorted(converted.glob("*.safetensors"))
    assert {converted / file for file in index.values()} == set(shards)
    assert len(shards) == 3
    assert all(shard.stat().st_size < 2.1 * (1 << 20) for shard in shards)
    assert not [path for path in converted.iterdir() if path.suffix not in (".json", ".jinja", ".safetensors")]
    assert not (converted / "conversion.json").exists()
    config = json.loads((converted / "config.json").read_bytes())
    assert (config["image_token_index"], config["text_config"]["vocab_size"], config["dtype"]) == (640, 704, "float32")
    assert AutoProcessor.from_pretrained(converted).image_processor.do_pad, "the original says image_aspect_ratio pad"
    _, report = LlavaForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(report.values())


def test_added_rows_are_never_the_likeliest_token(converted: Path) -> None:
    head = weights_of(converted)[ADDED_ROWS[0]]
    torch.testing.assert_close(head[640:], head[:640].mean(0).expand(64, -1))


def test_checkpoint_with_its_vision_tower_is_converted(tmp_path: Path, clip: Path) -> None:
    """Only the configuration of the vision tower comes from another directory."""
    originals.demo_original(tmp_path / "src", tmp_path / "tower")
    (tmp_path / "src" / "pytorch_model.bin").unlink()
    save_file(originals.demo_weights(), tmp_path / "src" / "model.safetensors")
    (tmp_path / "tower").mkdir()
    shutil.copy(clip / "config.json", tmp_path / "tower")
    assert main([str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    check_is_the_demo(tmp_path / "dst")


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector."])
def test_projector_and_a_base_are_merged(tmp_path: Path, clip: Path, prefix: str) -> None:
    write_base(tmp_path / "base")
    (tmp_path / "src").mkdir()
    projector = {name: tensor for name, tensor in originals.demo_weights().items() if "mm_projector" in name}
    torch.save(
        {name.replace("model.mm_projector.", prefix): tensor for name, tensor in projector.items()}, tmp_path / "src/mm_projector.bin"
    )
    (tmp_path / "src/config.json").write_text(json.dumps(originals.LLAVA | originals.DEMO | {"tune_mm_mlp_adapter": True}))
    asked = [str(tmp_path / "src"), str(tmp_path / "dst"), "--base", str(tmp_path / "base"), "--vision-tower", str(clip)]
    assert main(asked) == 0
    check_is_the_demo(tmp_path / "dst")


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_lora_and_a_base_are_merged(tmp_path: Path, clip: Path, rank_stabilised: bool) -> None:
    """The merged weight is W + alpha / r B A. The projector is in non_lora_trainables.bin."""
    base = write_base(tmp_path / "base")
    adapter = random_adapter(base)
    originals.write_lora(tmp_path / "src", adapter, clip, use_rslora=rank_stabilised)
    wanted: dict[str, Tensor] = {}
    scale = originals.ALPHA / (originals.RANK**0.5 if rank_stabilised else originals.RANK)
    for module in ADAPTED:
        a, b = (adapter[f"{module}.lora_{half}.weight"] for half in "AB")
        wanted[f"language_model.{module}.weight"] = base[f"{module}.weight"] + scale * (b @ a)
    assert main([str(tmp_path / "src"), str(tmp_path / "dst"), "--base", str(tmp_path / "base")]) == 0
    check_is_the_demo(tmp_path / "dst", wanted)


def test_lora_becomes_its_base_with_the_tuned_projector_and_an_adapter(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base")
    adapter = random_adapter(base)
    originals.write_lora(tmp_path / "src", adapter, clip)
    asked = [str(tmp_path / "src"), str(tmp_path / "dst"), "--base", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")]
    assert main(asked) == 0
    command = f"llava-gateway serve {tmp_path / 'dst'} --lora-modules adapter={tmp_path / 'adapter'} --max-lora-rank 32\n"
    assert capsys.readouterr().out.endswith(command)
    check_is_the_demo(tmp_path / "dst")  # the base has no projector, so the demo's is that of non_lora_trainables.bin
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    found = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert found.keys() == {f"base_model.model.{name.replace('model.', 'model.language_model.', 1)}" for name in adapter}
    for name, tensor in adapter.items():
        assert torch.equal(found[f"base_model.model.{name.replace('model.', 'model.language_model.', 1)}"], tensor)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (originals.RANK, originals.ALPHA, False)
    adapted = re.compile(config["target_modules"])
    names = [name for name, _ in LlavaForConditionalGeneration.from_pretrained(tmp_path / "dst").named_modules()]
    assert {name.rpartition(".")[2] for name in names if adapted.fullmatch(name)} == {"q_proj", "down_proj"}
    assert not any("vision_tower" in name for name in names if adapted.fullmatch(name))
    assert main(asked) == 1
    assert "is there already" in capsys.readouterr().err


def random_adapter(base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the factors for the layers in ADAPTED, by LLaVA's names."""
    adapter: dict[str, Tensor] = {}
    for module in ADAPTED:
        rows, columns = base[f"{module}.weight"].shape
        adapter[f"{module}.lora_A.weight"] = torch.randn(originals.RANK, columns) / 9
        adapter[f"{module}.lora_B.weight"] = torch.randn(rows, originals.RANK) / 9
    return adapter


def test_v1_with_linear_projector_and_sentencepiece_is_converted(tmp_path: Path) -> None:
    source, target = tmp_path / "llava-v1", tmp_path / "dst"
    weights = originals.random_original(source, mm_use_im_start_end=True)
    pieces = originals.sentencepiece_tokenizer(source)
    added = {"<im_end>": 643, "<im_patch>": 641, "<im_start>": 642, "[PAD]": 640}
    (source / "added_tokens.json").write_text(json.dumps(added))
    assert main([str(source), str(target)]) == 0
    model = LlavaForConditionalGeneration.from_pretrained(target, dtype=torch.float32)
    features = torch.randn(5, 32)
    wanted = features @ weights["model.mm_projector.weight"].float().T + weights["model.mm_projector.bias"].float()
    torch.testing.assert_close(model.model.multi_modal_projector(features), wanted)
    processor = AutoProcessor.from_pretrained(target)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What  is\nthis? Ünï 漢字 1234"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == f"{CURIOUS_USER} USER: <image>\n What  is\nthis? Ünï 漢字 1234 ASSISTANT:"
    config = json.loads((target / "config.json").read_bytes())
    assert (config["mm_use_im_start_end"], config["mm_use_im_patch_token"]) == (True, False)
    prompt = prompt.replace("<image>", "<im_start><image><im_end>")  # as the server does, by config.json
    before, after = (pieces.encode(text) for text in prompt.split("<im_start><image><im_end>"))
    start, end, image_id = 642, 643, 644
    assert processor.tokenizer(prompt)["input_ids"] == [1, *before, start, image_id, end, *after]
    assert processor.tokenizer.decode(after) == prompt.partition("<im_end>")[2]


def test_killed_conversion_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, partial = tmp_path / "src", tmp_path / "dst", tmp_path / "dst.partial"
    originals.random_original(source, layers=20, intermediate=5000)
    originals.sentencepiece_tokenizer(source)
    asked = [str(source), str(target), "--max-shard-mb", "2"]
    first = subprocess.Popen(command(*asked), stdout=subprocess.DEVNULL)
    while not list(partial.glob("model-0000[3-9]-*.safetensors")):
        assert first.poll() is None
        time.sleep(0.001)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    assert not target.exists()
    last = max(partial.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-100])  # the disk has lost the end of the file
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace("float16", "bfloat16"))
    assert main(asked) == 1
    (source / "config.json").write_text(config)
    assert main([str(source), str(target), "--max-shard-mb", "4"]) == 1
    assert "dst.partial is of a conversion from other files or with other options" in capsys.readouterr().err
    assert main(asked) == 0
    assert not partial.exists()
    again = {path.name: path.stat().st_ino for path in target.glob("*.safetensors")}
    assert len(again) > len(kept)
    assert [name for name in kept if again[name] != kept[name]] == [last.name]
    assert {path.name for path in target.iterdir() if path.suffix == ""} == set()
    assert main([str(source), str(tmp_path / "unbroken"), "--max-shard-mb", "2"]) == 0
    for path in (tmp_path / "unbroken").iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name


def test_conversion_holds_one_shard_in_memory(tmp_path: Path) -> None:
    originals.random_original(tmp_path / "src", layers=12, intermediate=20000)
    originals.sentencepiece_tokenizer(tmp_path / "src")
    script = (
        "import resource, sys; from llava_gateway.cli.convert import main; import llava_gateway.convert.run\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit(status or str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    asked = [sys.executable, "-c", script, str(tmp_path / "src"), str(tmp_path / "dst"), "--max-shard-mb", "8"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    size = sum(path.stat().st_size for path in (tmp_path / "dst").glob("*.safetensors"))
    assert size > 80 << 20
    assert int(ended.stderr) << 10 < size / 2


def test_full_disk_is_reported_and_the_conversion_resumes(tmp_path: Path, clip: Path) -> None:
    originals.demo_original(tmp_path / "src", clip)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    asked = command(tmp_path / "src", tmp_path / "dst", "--max-shard-mb", 2)
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, preexec_fn=small_files)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "cannot be written" in ended.stderr
    assert main(list(map(str, asked[4:]))) == 0
    check_is_the_demo(tmp_path / "dst")


def test_existing_directory_is_not_overwritten(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals.demo_original(tmp_path / "src", clip)
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").touch()
    assert main([str(tmp_path / "src"), str(tmp_path / "dst")]) == 1
    assert "dst is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("dst*/*")] == ["mine"]
