"""Original checkpoints become what is served: the same weights, the same tokens; and what cannot be converted is told in one line."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import torch
from helpers import original_checkpoints as originals
from helpers.requests import image, user
from helpers.server import Server, serve
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_gateway.cli.convert import main
from llava_gateway.convert.detect import advice, original_kind
from llava_gateway.demo import CHECKPOINT
from llava_gateway.prompts.templates import CURIOUS_USER

TOWER = "openai/clip-vit-large-patch14-336"
ADDED_ROWS = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llava_gateway", "convert", *map(str, arguments)]


def weights_of(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def check_is_the_demo(directory: Path, changed: dict[str, Tensor] | None = None) -> None:
    """All weights are the demo model's, to the bit, but those that `changed` has."""
    wanted = {name: tensor.float() for name, tensor in load_file(CHECKPOINT / "model.safetensors").items()} | (changed or {})
    found = weights_of(directory)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        rows = found[name][: len(tensor)] if name in ADDED_ROWS else found[name]
        torch.testing.assert_close(rows, tensor, rtol=0, atol=1e-6 if name in (changed or {}) else 0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's vision tower, as a CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    originals.demo_clip(folder)
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a whole LLaVA v1.5 in two pickles, converted by the command; its vision tower is in the hub's cache."""
    folder = tmp_path_factory.mktemp("converted")
    commit = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
    repository = folder / "hub" / f"models--{TOWER.replace('/', '--')}"
    originals.demo_clip(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    originals.demo_original(folder / "llava-v1.5-demo", TOWER, shards=2)
    environment = os.environ | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    asked = command("llava-v1.5-demo", "my model", "--max-shard-mb", 2)
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "llava-gateway serve 'my model'" in ended.stdout
    return folder / "my model"


def test_weights_and_files(converted: Path) -> None:
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


def test_added_rows_are_never_the_likeliest(converted: Path) -> None:
    head = weights_of(converted)[ADDED_ROWS[0]]
    torch.testing.assert_close(head[640:], head[:640].mean(0).expand(64, -1))


@pytest.fixture(scope="module")
def converted_server(server: Server, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(
        tmp_path_factory.mktemp("server"), "--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20), model=str(converted)
    ) as started:
        yield started


def test_the_same_tokens_as_its_twin(server: Server, converted_server: Server) -> None:
    """Greedy, with the same words around: the demo's own template has no system prompt."""
    twin, ours = (openai.OpenAI(base_url=each.v1, api_key="none", max_retries=0) for each in (server, converted_server))
    system = {"role": "system", "content": CURIOUS_USER}
    first, second = image(("red", "blue", "green", "white")), image(("yellow", "black", "orange", "purple"))
    for message in (
        user(first, "Describe this image."),
        user(first, second, "Describe these images."),
        user(second, "What color is the top left?"),
        user("Hello"),
    ):
        said = []
        for client, model, messages in ((twin, "llava-demo", [system, message]), (ours, "my model", [message])):
            answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=200, logprobs=True)  # type: ignore[call-overload]
            tokens = [token.token for token in answer.choices[0].logprobs.content]
            said.append((tokens, answer.usage.prompt_tokens, answer.choices[0].finish_reason))
        assert said[0] == said[1]
        assert len(said[0][0]) > 1


def test_a_picture_is_padded_as_the_original_does_it(converted_server: Server) -> None:
    """A wide picture's left and right ends are lost where it is cropped."""
    client = openai.OpenAI(base_url=converted_server.v1, api_key="none", max_retries=0)
    answers = []
    for ratio in (None, "pad", "crop"):
        wide = originals.wide_picture()
        extra = {"image_aspect_ratio": ratio} if ratio else {}
        answer = client.chat.completions.create(
            model="my model",
            messages=[user(wide, "Describe this image.")],
            temperature=0,
            max_tokens=60,
            extra_body=extra,  # type: ignore[list-item]
        )
        answers.append(answer.choices[0].message.content)
    assert answers[0] == answers[1] != answers[2]


def test_a_checkpoint_that_holds_its_tower_in_safetensors(tmp_path: Path, clip: Path) -> None:
    """Only the tower's configuration is wanted from elsewhere."""
    originals.demo_original(tmp_path / "src", tmp_path / "tower")
    (tmp_path / "src" / "pytorch_model.bin").unlink()
    save_file(originals.demo_weights(), tmp_path / "src" / "model.safetensors")
    (tmp_path / "tower").mkdir()
    shutil.copy(clip / "config.json", tmp_path / "tower")
    assert main([str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    check_is_the_demo(tmp_path / "dst")


def write_base(directory: Path) -> dict[str, Tensor]:
    """The demo's language model alone, as a LLaMA."""
    weights = {name: tensor for name, tensor in originals.demo_weights().items() if "mm_projector" not in name and "vision" not in name}
    config = {key: originals.LLAVA[key] for key in ("max_position_embeddings", "rms_norm_eps")} | originals.DEMO
    originals.write_checkpoint(directory, weights, config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, shards=2)
    originals.demo_tokenizer(directory)
    return weights


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector."])
def test_a_projector_alone(tmp_path: Path, clip: Path, prefix: str) -> None:
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
def test_a_lora(tmp_path: Path, clip: Path, rank_stabilised: bool) -> None:
    """W + alpha / r B A, with the projector of non_lora_trainables.bin."""
    base = write_base(tmp_path / "base")
    rank, alpha = 4, 16
    adapter, wanted = {}, {}
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        weight = base[f"{module}.weight"]
        a, b = torch.randn(rank, weight.shape[1]) / 9, torch.randn(weight.shape[0], rank) / 9
        adapter |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        wanted[f"language_model.{module}.weight"] = weight + (alpha / (rank**0.5 if rank_stabilised else rank)) * (b @ a)
    source = tmp_path / "src"
    source.mkdir()
    torch.save(adapter, source / "adapter_model.bin")
    projector = {f"base_model.model.{name}": tensor for name, tensor in originals.demo_weights().items() if "mm_projector" in name}
    torch.save(projector, source / "non_lora_trainables.bin")
    lora = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "fan_in_fan_out": False, "modules_to_save": None}
    lora |= {"use_rslora": rank_stabilised, "base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}
    (source / "adapter_config.json").write_text(json.dumps(lora))
    (source / "config.json").write_text(json.dumps(originals.LLAVA | originals.DEMO | {"mm_vision_tower": str(clip)}))
    assert main([str(source), str(tmp_path / "dst"), "--base", str(tmp_path / "base")]) == 0
    check_is_the_demo(tmp_path / "dst", wanted)


def test_v1_with_a_linear_projector_and_sentencepiece(tmp_path: Path) -> None:
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
    assert prompt == f"{CURIOUS_USER} USER: <im_start><image><im_end>\n What  is\nthis? Ünï 漢字 1234 ASSISTANT:"
    before, after = (pieces.encode(text) for text in prompt.split("<im_start><image><im_end>"))
    start, end, image_id = 642, 643, 644
    assert processor.tokenizer(prompt)["input_ids"] == [1, *before, start, image_id, end, *after]
    assert processor.tokenizer.decode(after) == prompt.partition("<im_end>")[2]


def test_goes_on_where_it_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, partial = tmp_path / "src", tmp_path / "dst", tmp_path / "dst.partial"
    originals.random_original(source, layers=20, intermediate=5000)
    originals.sentencepiece_tokenizer(source)
    asked = [str(source), str(target), "--max-shard-mb", "2"]
    first = subprocess.Popen(command(*asked), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(partial.glob("model-0000[3-9]-*.safetensors")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    assert not target.exists()
    last = max(partial.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-100])  # as if the disk had lost its end
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


def test_memory_is_a_shard_not_the_checkpoint(tmp_path: Path) -> None:
    originals.random_original(tmp_path / "src", layers=12, intermediate=20000)
    originals.sentencepiece_tokenizer(tmp_path / "src")
    script = (
        "import resource, sys; from llava_gateway.cli.main.convert import main; import llava_gateway.convert.run\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit(status or str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    asked = [sys.executable, "-c", script, tmp_path / "src", tmp_path / "dst", "--max-shard-mb", "8"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    size = sum(path.stat().st_size for path in (tmp_path / "dst").glob("*.safetensors"))
    assert size > 80 << 20
    assert int(ended.stderr) << 10 < size / 2


def test_what_is_an_original(tmp_path: Path, converted: Path) -> None:
    assert original_kind(CHECKPOINT) is None
    assert original_kind(converted) is None
    assert original_kind(tmp_path / "nothing") is None
    (tmp_path / "config.json").write_text("{")
    assert original_kind(tmp_path) is None
    source = converted.parent / "llava-v1.5-demo"
    assert original_kind(source) == "merged"
    assert f"`llava-gateway convert {source} {source}-hf`" in str(advice(source))


def test_serve_says_the_command_that_converts(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "my llava"
    originals.demo_original(source, clip)
    asked = [sys.executable, "-m", "llava_gateway", "serve", str(source), "--port", "58127"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 1
    said = re.search("original LLaVA checkpoint; run `llava-gateway convert (.*)`, and serve (.*)", ended.stderr)
    assert said
    assert main(shlex.split(said[1])) == 0
    check_is_the_demo(Path(said[2]))


Spoil = Callable[[Path], list[str] | None]
"""Makes a good checkpoint bad; comes back with more arguments, if any."""


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


def adapter(**values: object) -> Spoil:
    def spoil(source: Path) -> list[str]:
        write_base(source / "base")
        torch.save({"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(2, 4)}, source / "adapter_model.bin")
        torch.save({}, source / "non_lora_trainables.bin")
        (source / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | values))
        return ["--base", str(source / "base")]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (config(architectures=["LlavaMistralForCausalLM"]), "LlavaMistralForCausalLM"),
        (config(image_aspect_ratio="anyres"), "LLaVA-1.6"),
        (config(mm_vision_tower="./checkpoints/clip"), "--vision-tower: there is no directory ./checkpoints/clip"),
        (config(mm_vision_tower="nobody/has-this"), "run `hf download nobody/has-this --local-dir DIR`"),
        (config(hidden_size=64), "is [704, 128], and config.json makes it [704, 64]"),
        (config(hidden_size="wide"), "config.json makes no LLaVA"),
        (config(torch_dtype="int8"), "torch_dtype int8"),
        (config(mm_vision_select_feature="cls"), "mm_vision_select_feature cls"),
        (config(vision_config={}), "in the Hugging Face layout already"),
        (weights(model__image_newline=torch.ones(1)), "LLaVA-1.6"),
        (weights(model__norm__weight=torch.full((128,), 1e-3)), "delta"),
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
        (lambda source: ["--base", str(source)], "--base is for adapters"),
        (lambda source: ["--vision-tower", str(source)], "is no CLIP"),
        (adapter(), "model.layers.9.self_attn.q_proj.weight, which the base does not have"),
        (adapter(use_dora=True), "use_dora"),
        (adapter(r=0), "is no configuration of a LoRA"),
    ],
)
def test_what_cannot_be_converted(
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
    assert not list(tmp_path.glob("dst*"))


def test_a_full_disk_is_told_and_gone_on_from(tmp_path: Path, clip: Path) -> None:
    originals.demo_original(tmp_path / "src", clip)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    asked = command(tmp_path / "src", tmp_path / "dst", "--max-shard-mb", 2)
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, preexec_fn=small_files)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "cannot be written" in ended.stderr
    assert main(list(map(str, asked[4:]))) == 0
    check_is_the_demo(tmp_path / "dst")


def test_nothing_is_overwritten(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals.demo_original(tmp_path / "src", clip)
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").touch()
    assert main([str(tmp_path / "src"), str(tmp_path / "dst")]) == 1
    assert "dst is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("dst*/*")] == ["mine"]
