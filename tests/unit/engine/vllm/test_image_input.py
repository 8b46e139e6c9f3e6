"""The engine's input for images: its tokens, its placeholders, its pixels, and its order in vLLM's cache."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from vllm.inputs import mm_input
from vllm.multimodal.cache import LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.compat.image_input import ImageInput, why_unsupported
from llava_gateway.types import PreparedImage

pytestmark = pytest.mark.slow

IMAGE_TOKEN = 9


def engine(*, cache: Any = None, **changes: Any) -> Any:
    """A front end around the demo model's image processor. `changes`: of its configuration and of the processor's attributes."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT).image_processor
    for name, value in changes.get("processor", {}).items():
        setattr(processor, name, value)
    info = SimpleNamespace(get_hf_processor=lambda: SimpleNamespace(image_processor=processor))
    renderer = SimpleNamespace(mm_processor_cache=cache, get_mm_processor=lambda: SimpleNamespace(info=info), updates=0)
    renderer.update_mm_cache_stats = lambda: setattr(renderer, "updates", renderer.updates + 1)
    multimodal = SimpleNamespace(mm_tensor_ipc=changes.get("ipc", "direct_rpc"), mm_processor_cache_gb=1)
    config = SimpleNamespace(
        hf_config=SimpleNamespace(model_type=changes.get("model_type", "llava"), image_token_index=IMAGE_TOKEN),
        dtype=torch.float32,
        get_multimodal_config=lambda: multimodal,
    )
    return SimpleNamespace(renderer=renderer, model_config=config)


def sender_cache() -> LruKeyReplicatedSenderCache:
    return LruKeyReplicatedSenderCache(engine().model_config)


def picture(name: str, seed: int = 0) -> PreparedImage:
    noise = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), np.uint8)
    return PreparedImage(Image.fromarray(noise), name, (336, 336), 4)


def processed(image: PreparedImage) -> torch.Tensor:
    """Return the pixels as Hugging Face's processor makes them."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT).image_processor
    return torch.as_tensor(processor(image.pixels, return_tensors="pt")["pixel_values"][0])


def test_pixels_are_those_of_the_models_processor() -> None:
    image = picture("a")
    (item,) = ImageInput(engine()).render([IMAGE_TOKEN], [image], None)["mm_kwargs"]["image"]
    assert torch.equal(item["pixel_values"].data, processed(image))


def test_each_image_token_becomes_the_tokens_of_its_image() -> None:
    rendered = ImageInput(engine()).render([1, IMAGE_TOKEN, 2, IMAGE_TOKEN], [picture("a"), picture("b")], None)
    assert rendered["prompt_token_ids"] == [1, *[IMAGE_TOKEN] * 4, 2, *[IMAGE_TOKEN] * 4]
    assert rendered["mm_placeholders"] == {"image": [PlaceholderRange(offset=1, length=4), PlaceholderRange(offset=6, length=4)]}
    assert rendered["mm_hashes"] == {"image": ["a", "b"]}
    assert "cache_salt" not in rendered


def test_salt_keeps_images_apart() -> None:
    rendered = ImageInput(engine()).render([IMAGE_TOKEN], [picture("a")], "salt")
    assert (rendered["mm_hashes"], rendered["cache_salt"]) == ({"image": ["a-salt"]}, "salt")


def test_image_is_sent_once_and_its_place_in_the_cache_is_renewed() -> None:
    cache = sender_cache()
    front_end = engine(cache=cache)
    own = ImageInput(front_end)
    sent = [
        [item is not None for item in own.render([IMAGE_TOKEN] * len(names), [picture(name) for name in names], None)["mm_kwargs"]["image"]]
        for names in ("ab", "ba", "aca")
    ]
    assert sent == [[True, True], [False, False], [False, True, False]]
    assert front_end.renderer.updates == 3


def test_engine_that_lost_an_image_gets_it_again() -> None:
    cache = sender_cache()
    own = ImageInput(engine(cache=cache))
    own.render([IMAGE_TOKEN], [picture("a")], None)
    cache.invalidate("a")
    (item,) = own.render([IMAGE_TOKEN], [picture("a")], None)["mm_kwargs"]["image"]
    assert item is not None


def vllms(image: PreparedImage, pixels: torch.Tensor, tokens: int = 4) -> Any:
    """Return the input that vLLM's renderer makes."""
    items = MultiModalKwargsItems.from_hf_inputs(
        {"pixel_values": pixels[None]},
        {"pixel_values": MultiModalFieldConfig.batched("image")},
    )
    place = PlaceholderRange(offset=1, length=tokens)
    return mm_input([1, *[IMAGE_TOKEN] * tokens, 2], items, {"image": [image.digest]}, {"image": [place]})


def test_comparison_finds_other_pixels_and_other_tokens() -> None:
    cache, image = sender_cache(), picture("a")
    own = ImageInput(engine(cache=cache))
    token_ids, pixels = [1, IMAGE_TOKEN, 2], processed(image)
    assert own.is_equal([image], token_ids, vllms(image, pixels))
    assert not own.is_equal([image], token_ids, vllms(image, pixels + 1e-6))
    assert not own.is_equal([image], token_ids, vllms(image, pixels, tokens=5))
    assert not cache.is_cached_item("a"), "the engine has not got this image"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "llava_next"}, "own shape"),
        ({"cache": object()}, "another kind"),
        ({"ipc": "torch_shm"}, "torch_shm"),
        ({"processor": {"do_normalize": False}}, "do_normalize"),
        ({"processor": {"rescale_factor": None}}, "rescale_factor"),
    ],
)
def test_other_models_keep_vllms_renderer(changes: dict[str, Any], why: str) -> None:
    assert why in str(why_unsupported(engine(**changes)))


def test_llava_is_supported() -> None:
    assert why_unsupported(engine(cache=sender_cache())) is None
