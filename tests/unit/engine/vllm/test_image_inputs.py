"""Images on the fast way to the engine: the prompts, the tensors and the order of names equal those of vLLM's renderer."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import LruKeyReplicatedSenderCache
from vllm.renderers import renderer_from_config

from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.vllm.compat import image_inputs
from llava_gateway.engine.vllm.compat.image_inputs import ImageInputs, UnknownModel
from llava_gateway.engine.vllm.compat.requests import process_media
from llava_gateway.types import PreparedImage

pytestmark = pytest.mark.slow

TOKENS = 576


@pytest.fixture(scope="module")
def config() -> VllmConfig:
    return AsyncEngineArgs(str(CHECKPOINT), enforce_eager=True).create_engine_config()


@pytest.fixture
def engine(config: VllmConfig) -> Iterator[Any]:
    """The parts of a front end that make inputs, without an engine."""
    renderer = renderer_from_config(config)
    yield SimpleNamespace(renderer=renderer, model_config=config.model_config)
    renderer.shutdown()


@pytest.fixture
def inputs(engine: Any) -> Iterator[ImageInputs]:
    made = ImageInputs(engine)
    yield made
    made.close()


def images(count: int) -> list[PreparedImage]:
    random = np.random.default_rng(count)
    pixels = random.integers(0, 256, (count, 336, 336, 3), np.uint8)
    return [PreparedImage(Image.fromarray(each), f"digest{number}", (336, 336), TOKENS) for number, each in enumerate(pixels)]


def prompt(engine: Any, count: int) -> list[int]:
    token = engine.model_config.hf_config.image_token_index
    return [1, *(part for number in range(count) for part in (token, 7 + number)), 9]


@pytest.mark.parametrize("salt", [None, "salt"])
def test_both_ways_make_the_same_input(engine: Any, inputs: ImageInputs, salt: str | None) -> None:
    given = images(3)

    async def main() -> tuple[Any, Any]:
        ours = await inputs.make(prompt(engine, 3), given, salt)
        engine.renderer.clear_mm_cache()
        return ours, await process_media(engine.renderer, prompt(engine, 3), given, salt)

    ours, theirs = asyncio.run(main())
    assert {key: theirs[key] for key in ours} == dict(ours)
    assert ours["mm_kwargs"]["image"][2]["pixel_values"].data.dtype == theirs["mm_kwargs"]["image"][2]["pixel_values"].data.dtype


def test_a_known_image_is_not_sent_again(engine: Any, inputs: ImageInputs) -> None:
    one, two, three = images(3)

    async def main() -> list[Any]:
        return [await inputs.make(prompt(engine, len(each)), each) for each in ([one, two], [three, one, three])]

    first, second = asyncio.run(main())
    assert [item is None for item in first["mm_kwargs"]["image"]] == [False, False]
    assert [item is None for item in second["mm_kwargs"]["image"]] == [False, True, True]


def test_both_ways_forget_the_same_images(engine: Any, inputs: ImageInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process forgets in the order of the requests: another order here would name images that it has forgotten."""
    requests = [[0, 1], [2], [0], [3], [1, 4], [0, 0, 2]]
    given = images(5)

    async def main(fast: bool) -> list[list[bool]]:
        sender = engine.renderer.mm_processor_cache
        sender._cache.clear()
        sent = []
        for numbers in requests:
            asked = [given[number] for number in numbers]
            arguments = prompt(engine, len(asked)), asked
            made = await (inputs.make(*arguments) if fast else process_media(engine.renderer, *arguments))
            sent.append([item is not None for item in made["mm_kwargs"]["image"]])
        return sent

    small = LruKeyReplicatedSenderCache(engine.model_config)
    monkeypatch.setattr(small._cache, "_Cache__maxsize", 3 * 336 * 336 * 3 * engine.model_config.dtype.itemsize)
    monkeypatch.setattr(engine.renderer, "_mm_processor_cache", small)
    monkeypatch.setattr(inputs, "_cache", small)
    fast, slow = (asyncio.run(main(way)) for way in (True, False))
    assert fast == slow
    assert fast[4:] == [[True, True], [True, False, True]]


def test_an_image_that_is_forgotten_while_others_are_made_is_sent(
    engine: Any, inputs: ImageInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = images(2)
    make = inputs._items

    async def main() -> Any:
        await inputs.make(prompt(engine, 1), [one])

        def items(missing: Any) -> dict[str, Any]:
            engine.renderer.mm_processor_cache.invalidate(one.digest)
            return make(missing)

        monkeypatch.setattr(inputs, "_items", items)
        return await inputs.make(prompt(engine, 2), [one, two])

    assert None not in asyncio.run(main())["mm_kwargs"]["image"]


def test_too_many_images_are_refused_as_by_vllm(engine: Any, inputs: ImageInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inputs._info.allowed_mm_limits, "image", 1)
    with pytest.raises(VLLMValidationError, match="At most 1 image"):
        asyncio.run(inputs.make(prompt(engine, 2), images(2)))


def test_a_renderer_that_makes_other_tensors_is_noticed(engine: Any, inputs: ImageInputs) -> None:
    asyncio.run(inputs.check(prompt(engine, 2), 336, TOKENS))
    assert not engine.renderer.mm_processor_cache.is_cached_item("check-0-salt")
    with pytest.raises(UnknownModel, match="prompt_token_ids"):
        asyncio.run(inputs.check(prompt(engine, 2), 336, TOKENS + 1))
    inputs._std[1] += 0.5
    with pytest.raises(UnknownModel, match="mm_kwargs"):
        asyncio.run(inputs.check(prompt(engine, 2), 336, TOKENS))


def test_unknown_versions_and_models_take_vllms_own_way(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.model_config.hf_config, "model_type", "llava_next")
        with pytest.raises(UnknownModel, match="llava_next"):
            ImageInputs(engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine.renderer, "_mm_processor_cache", None)
        with pytest.raises(UnknownModel, match="NoneType"):
            ImageInputs(engine)
    monkeypatch.setattr(image_inputs, "READ_IN", "0.31.")
    with pytest.raises(UnknownModel, match="version"):
        ImageInputs(engine)
