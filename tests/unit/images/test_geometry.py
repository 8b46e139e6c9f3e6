"""Image tokens: the gateway's count equals vLLM's count, and a pickled model description keeps it."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny_models import NEXT_GRIDS, ONEVISION_GRIDS, TINY, next_video
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.launch import describe
from llava_gateway.images.geometry import ImageTokens, VideoTokens
from llava_gateway.model_info import ModelInfo
from llava_gateway.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SIDES = (336, 384)
EDGES = sorted({side * count + more for side in SIDES for count in range(1, 7) for more in (-1, 0, 1)})
LENGTHS = st.one_of(st.integers(1, 60), st.integers(1, 2500), st.integers(1, 20_000), st.sampled_from(EDGES))
SCALED = st.builds(lambda scale, across, down: (scale * across, scale * down), st.integers(1, 2500), st.integers(1, 40), st.integers(1, 40))
SIZES = st.one_of(st.tuples(LENGTHS, LENGTHS), SCALED)
"""Widths and heights: any, near the edges of squares, and with simple ratios, at which an image covers whole features."""
COUNT_IN_ANOTHER_PROCESS = """
import pickle, sys
vision = pickle.load(sys.stdin.buffer).vision
print(vision.tokens(640, 480), sorted({"vllm", "torch", "transformers"} & set(sys.modules)))
"""
MAX_MEDIA_TOKENS = 7000
"""The most tokens of one image or video that the engine accepts."""
TEXT = "Is it <image>\n🦙 Zażółć\tgęślą?"


@dataclasses.dataclass
class Described:
    """A model whose engine was not started: vLLM's information about it, and the gateway's description."""

    info: Any
    model: ModelInfo

    def vllm(self, width: int, height: int) -> int:
        return int(self.info.get_num_image_tokens(image_width=width, image_height=height))

    @property
    def tokens(self) -> ImageTokens:
        assert isinstance(self.model.vision.tokens, ImageTokens)
        return self.model.vision.tokens


def described(checkpoint: Path) -> Described:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = EngineArgs(model=str(checkpoint)).create_model_config()
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    engine: Any = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=config, compute_hash=lambda: ""),
        renderer=SimpleNamespace(get_mm_processor=lambda: processor),
        input_processor=SimpleNamespace(mm_encoder_cache_size=MAX_MEDIA_TOKENS),
    )
    return Described(processor.info, describe(engine, video_frames=64))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Described]:
    folder = tmp_path_factory.mktemp("models")
    made = TINY | {"next_video": next_video}
    for name, make in made.items():
        make(folder / name)
    return {"demo": described(CHECKPOINT)} | {name: described(folder / name) for name in made}


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_the_tiny_models_have_the_geometry_of_the_real_models(models: dict[str, Described], name: str) -> None:
    side, patches, pinpoints, most_squares = {"next": (336, 24, NEXT_GRIDS, None), "onevision": (384, 27, ONEVISION_GRIDS, 9)}[name]
    grids = tuple((width, height) for height, width in pinpoints)
    assert models[name].tokens == ImageTokens(patches**2, side, patches, grids, most_squares)


@pytest.mark.parametrize("name", ["next", "onevision"])
@settings(max_examples=800, deadline=None)
@given(size=SIZES)
@example((1, 1))
@example((1, 20_000))
@example((20_000, 1))
@example((1153, 944))
@example((1152, 1407))  # just below what OneVision scales down
@example((768, 2105))  # just above
def test_the_count_for_an_image_on_a_grid_equals_vllms(models: dict[str, Described], name: str, size: tuple[int, int]) -> None:
    tokens = models[name].tokens(*size)
    assert tokens == models[name].vllm(*size)
    assert models[name].model.vision.min_image_tokens <= tokens <= models[name].model.vision.max_image_tokens


@pytest.mark.parametrize(("name", "size"), [("next", (672, 672)), ("onevision", (1152, 1407)), ("demo", (1, 1)), ("siglip", (1, 1))])
def test_max_image_tokens_is_reached_and_not_exceeded(models: dict[str, Described], name: str, size: tuple[int, int]) -> None:
    assert models[name].vllm(*size) == models[name].model.vision.max_image_tokens


@pytest.mark.parametrize(("name", "tokens"), [("onevision", VideoTokens(196, 1)), ("next_video", VideoTokens(144, 0))])
def test_video_takes_as_many_tokens_as_vllm_gives_it(models: dict[str, Described], name: str, tokens: VideoTokens) -> None:
    video, side = models[name].model.video, models[name].model.vision.side
    assert video
    assert (video.tokens, video.side, video.aspect_ratio) == (tokens, side, "resize" if name == "onevision" else "crop")
    for frames in (1, 2, 31, 64):
        vllms = models[name].info.get_num_video_tokens(image_width=side, image_height=side, num_frames=frames)
        assert video.tokens(frames) == vllms
    assert video.tokens(video.max_frames) <= MAX_MEDIA_TOKENS < video.tokens(video.max_frames + 1)


def test_only_models_with_videos_are_described_with_videos(models: dict[str, Described]) -> None:
    assert [name for name, each in models.items() if each.model.video] == ["onevision", "next_video"]
    assert [name for name, each in models.items() if not each.model.takes_images] == ["next_video"]


@pytest.mark.parametrize(("max_tokens", "frames"), [(1, 1), (197, 1), (392, 1), (393, 2), (6273, 32), (1 << 20, 32)])
def test_frames_fit_the_room(max_tokens: int, frames: int) -> None:
    assert VideoTokens(196, 1).fitting_frames(32, max_tokens) == frames


@pytest.mark.parametrize("name", ["next", "onevision"])
@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=12), size=SIZES)
def test_the_count_with_other_grids_equals_vllms(
    models: dict[str, Described], name: str, counts: list[tuple[int, int]], size: tuple[int, int]
) -> None:
    """The grids come in any order. Some come twice, and some keep as many pixels as another grid."""
    model = models[name]
    grids = tuple((across * model.tokens.side, down * model.tokens.side) for across, down in counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.info.get_hf_config(), "image_grid_pinpoints", [[height, width] for width, height in grids])
        assert dataclasses.replace(model.tokens, grids=grids)(*size) == model.vllm(*size)


@pytest.mark.parametrize(("name", "tokens"), [("demo", 576), ("bakllava", 577), ("siglip", 729)])
def test_a_model_without_grids_counts_every_image_alike(models: dict[str, Described], name: str, tokens: int) -> None:
    model = models[name]
    for size in ((1, 1), (336, 336), (20_000, 1), (3000, 2000)):
        assert model.tokens(*size) == model.vllm(*size) == tokens


@pytest.mark.parametrize("name", ["demo", *TINY])
def test_pickling_a_description_changes_nothing(models: dict[str, Described], name: str) -> None:
    model = models[name].model
    again = pickle.loads(pickle.dumps(model))
    tokenizer = Tokenizer(model.tokenizer.to_json())
    assert dataclasses.replace(again, tokenizer=tokenizer) == dataclasses.replace(model, tokenizer=tokenizer)
    for size in ((1, 1), (640, 480), (10, 1000), (3001, 2003)):
        assert again.vision.tokens(*size) == models[name].vllm(*size)
    assert again.tokenizer.to_json() == model.tokenizer.to_json()
    assert again.tokenizer.control_tokens == model.tokenizer.control_tokens
    ids = model.tokenizer.encode(TEXT, add_special_tokens=True).ids
    assert again.tokenizer.encode(TEXT, add_special_tokens=True).ids == ids
    assert again.tokenizer.decode(ids) == model.tokenizer.decode(ids)
    assert list(map(again.tokenizer.token_bytes, range(again.tokenizer.size))) == [
        model.tokenizer.token_bytes(token_id) for token_id in range(model.tokenizer.size)
    ]


def test_counting_in_another_process_does_not_import_vllm(models: dict[str, Described]) -> None:
    model = models["onevision"]
    counted = subprocess.run(
        [sys.executable, "-c", COUNT_IN_ANOTHER_PROCESS], input=pickle.dumps(model.model), capture_output=True, check=True
    ).stdout
    assert counted.decode().strip() == f"{model.vllm(640, 480)} []"
