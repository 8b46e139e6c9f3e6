"""Prepared images as vLLM's engine takes them: normalised tensors, made here instead of in vLLM's renderer.

vLLM's renderer runs the model's Hugging Face processor, whose steps change nothing in a prepared image except the normalisation. Here only
the normalisation is left. At the start its result is compared with the renderer's.

Read in vLLM 0.32.0.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from llava_gateway.engine.vllm.compat.requests import cache_names, process_media
from llava_gateway.engine.vllm.compat.seeds import READ_IN
from llava_gateway.types import PreparedImage

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class UnknownModel(Exception):
    """The model, or this version of vLLM, is not one whose images can be made here. The message is the reason."""


class ImageInputs:
    """Makes prompts with images for a model that sees an image as one square, without vLLM's renderer. Used from one event loop."""

    def __init__(self, engine: "AsyncLLM") -> None:
        """Read how the model's processor normalises an image. Raises UnknownModel.

        Touches: `AsyncLLM.renderer`, `AsyncLLM.model_config`, `BaseRenderer.mm_processor_cache`, `BaseRenderer.get_mm_processor`,
        `BaseMultiModalProcessor.info`, `BaseProcessingInfo.get_hf_processor` and `MultiModalFieldConfig.batched`.
        Without it: `process_media`.
        """
        import torch
        import vllm
        from vllm.multimodal.cache import LruKeyReplicatedSenderCache
        from vllm.multimodal.inputs import MultiModalFieldConfig

        if not vllm.__version__.startswith(READ_IN):
            raise UnknownModel(f"vLLM {vllm.__version__} is not a known version")
        config = engine.model_config
        if config.hf_config.model_type != "llava":
            raise UnknownModel(f"a model of type {config.hf_config.model_type} sees more than one square")
        self._renderer = engine.renderer
        self._cache = engine.renderer.mm_processor_cache
        if type(self._cache) is not LruKeyReplicatedSenderCache:
            raise UnknownModel(f"vLLM's cache of images is of type {type(self._cache).__name__}")
        self._info = engine.renderer.get_mm_processor().info
        processor = self._info.get_hf_processor().image_processor
        if not (processor.do_rescale and processor.do_normalize):
            raise UnknownModel("its processor does not normalise images")
        per_unit = 1.0 / processor.rescale_factor  # these operations, in this order, as in Hugging Face's processor
        self._mean, self._std = ((torch.tensor(values) * per_unit).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
        self._image_token = config.hf_config.image_token_index
        self._dtype = config.dtype
        self._field = MultiModalFieldConfig.batched("image").field
        self._thread = ThreadPoolExecutor(1, "image-tensors", torch.set_num_threads, (1,))  # PyTorch counts for each thread

    async def make(self, token_ids: Sequence[int], images: Sequence[PreparedImage], cache_salt: str | None = None) -> Any:
        """Return a prompt with images as `AsyncLLM.add_request` takes it. The arguments are those of `process_media`.

        The caller must call `add_request` next, without another await: vLLM keeps the names of images in this process in the order in which
        the engine's process gets them, and both must forget the same image when their caches are full.

        Touches: `BaseProcessingInfo.validate_num_items`, the methods of `BaseMultiModalProcessorCache` that are called here, and
        `BaseRenderer.update_mm_cache_stats`.
        Without it: `process_media`.
        """
        self._info.validate_num_items("image", len(images))
        names, cache = cache_names(images, cache_salt), self._cache
        items: dict[str, Any] = {}
        while missing := {
            name: image for name, image in zip(names, images, strict=True) if name not in items and not cache.is_cached_item(name)
        }:  # more than once only if the cache has dropped an image meanwhile
            items |= await asyncio.get_running_loop().run_in_executor(self._thread, self._items, missing)
        for name in names:
            cache.touch_sender_cache_item(name)
        sent = []
        for name in names:
            item = items.get(name)
            sent.append(cache.get_and_update_item(None if item is None else (item, ()), name)[0])
        cache.release_sender_touches()
        self._renderer.update_mm_cache_stats()
        return self._input(token_ids, images, names, sent, cache_salt)

    async def check(self, token_ids: Sequence[int], side: int, tokens: int) -> None:
        """Compare a prompt with two images that is made here with that of vLLM's renderer. Raises UnknownModel if they differ.

        `token_ids`: with two image tokens. `side`: of the model's square, in pixels. `tokens`: of an image.
        """
        images = [PreparedImage(_test_image(side, shift), f"check-{shift}", (side, side), tokens) for shift in (0, 100)]
        names = cache_names(images, "salt")
        items = self._items(dict(zip(names, images, strict=True)))
        ours = self._input(token_ids, images, names, [items[name] for name in names], "salt")
        theirs = await process_media(self._renderer, token_ids, images, "salt", skip_cache=True)
        for key, value in ours.items():
            if value != theirs.get(key):
                raise UnknownModel(f"vLLM's renderer makes a different value of {key}")
        for mine, own in zip(ours["mm_kwargs"]["image"], theirs["mm_kwargs"]["image"], strict=True):
            if mine["pixel_values"].data.dtype != own["pixel_values"].data.dtype:
                raise UnknownModel("vLLM's renderer makes tensors of another type")

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _items(self, images: Mapping[str, PreparedImage]) -> dict[str, Any]:
        """Return the tensors of the images by name.

        Touches: `MultiModalKwargsItem` and `MultiModalFieldElem`.
        """
        import torch
        from vllm.multimodal.inputs import MultiModalFieldElem, MultiModalKwargsItem

        items = {}
        for name, image in images.items():
            planes = torch.from_numpy(np.array(image.pixels)).permute(2, 0, 1).contiguous().to(torch.float32)
            pixels = planes.sub_(self._mean).div_(self._std).to(self._dtype)
            items[name] = MultiModalKwargsItem({"pixel_values": MultiModalFieldElem(data=pixels, field=self._field)})
        return items

    def _input(
        self, token_ids: Sequence[int], images: Sequence[PreparedImage], names: list[str], items: list[Any], cache_salt: str | None
    ) -> Any:
        """Return vLLM's input, with each image token repeated as often as its image takes tokens.

        `items`: for each image, its tensor, or None if the engine has it.

        Touches: `mm_input`, `MultiModalKwargsItems` and `PlaceholderRange`.
        """
        from vllm.inputs import mm_input
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        ids: list[int] = []
        places, remaining = [], iter(images)
        for token in token_ids:
            if token == self._image_token:
                tokens = next(remaining).tokens
                places.append(PlaceholderRange(offset=len(ids), length=tokens))
                ids += [token] * tokens
            else:
                ids.append(token)
        kwargs = MultiModalKwargsItems({"image": items})
        return mm_input(ids, kwargs, {"image": names}, {"image": places}, cache_salt=cache_salt)


def _test_image(side: int, shift: int) -> Image.Image:
    """Return a square in which each channel has every value, and no two rows or columns are equal."""
    steps = np.arange(side * side * 3) * 7 + np.arange(side * side * 3) // (side * 3) + shift
    return Image.fromarray((steps % 256).astype(np.uint8).reshape(side, side, 3))
