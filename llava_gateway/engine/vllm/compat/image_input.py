"""The engine's input for a prompt with images. Importing this file imports vLLM.

vLLM's renderer passes each image through its parser, its hasher, Hugging Face's processor and its matcher of placeholders, in a thread. For
LLaVA these come to little: the pixels are normalised, and each image token becomes as many as the image takes. `ImageInput` does this in
one call. At the start, its result is compared with that of vLLM's renderer.

Read in vLLM 0.32.0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.inputs import mm_input
from vllm.multimodal.cache import LruKeyReplicatedSenderCache, MultiModalProcessorOnlyCache
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalFieldElem, MultiModalKwargsItem, MultiModalKwargsItems, PlaceholderRange

from llava_gateway.types import PreparedImage

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class ImageInput:
    """Makes the engine's input for a LLaVA model that sees an image as one square.

    Touches: `AsyncLLM.renderer` and `AsyncLLM.model_config`; `BaseRenderer.mm_processor_cache`, `update_mm_cache_stats` and
    `get_mm_processor`; `is_cached_item`, `touch_sender_cache_item`, `get_and_update_item` and `release_sender_touches` of the cache;
    `mm_input` and the classes of `vllm.multimodal.inputs`.
    Without it: `requests.process_images` gives the same input, and takes more CPU time.
    """

    def __init__(self, engine: "AsyncLLM") -> None:
        """`engine`: `why_unsupported` returns None for it."""
        self._renderer = engine.renderer
        self._cache = engine.renderer.mm_processor_cache
        self._image_token = engine.model_config.hf_config.image_token_index
        self._dtype = engine.model_config.dtype
        self._field = MultiModalFieldConfig.batched("image").field
        processor = _image_processor(engine)
        self._mean, self._std = (_levels(values, processor) for values in (processor.image_mean, processor.image_std))

    def render(self, token_ids: Sequence[int], images: Sequence[PreparedImage], cache_salt: str | None) -> Any:
        """Return the input for a prompt. It must be sent before another input is made: the engine's cache follows the same order.

        `token_ids`: one image token for each image. `cache_salt`: as in `requests.process_images`.
        """
        expanded: list[int] = []
        places: list[PlaceholderRange] = []
        remaining = iter(images)
        for token_id in token_ids:
            if token_id == self._image_token:
                tokens = next(remaining).tokens
                places.append(PlaceholderRange(offset=len(expanded), length=tokens))
                expanded += [token_id] * tokens
            else:
                expanded.append(token_id)
        names = [f"{image.digest}-{cache_salt}" if cache_salt else image.digest for image in images]
        items = MultiModalKwargsItems({"image": self._items(images, names)})
        return mm_input(expanded, items, {"image": names}, {"image": places}, cache_salt=cache_salt)

    def is_equal(self, images: Sequence[PreparedImage], token_ids: Sequence[int], rendered: Any) -> bool:
        """Return whether vLLM's renderer has made the same input as `render` would. The cache is not changed."""
        cache, self._cache = self._cache, None
        try:
            own = self.render(token_ids, images, None)
        finally:
            self._cache = cache
        names = ("type", "prompt_token_ids", "mm_hashes", "mm_placeholders")
        return all(own[name] == rendered[name] for name in names) and own["mm_kwargs"]["image"] == list(rendered["mm_kwargs"]["image"])

    def _items(self, images: Sequence[PreparedImage], names: Sequence[str]) -> list[MultiModalKwargsItem | None]:
        """Return the pixels of each image; None for an image that the engine has."""
        cache = self._cache
        if cache is None:
            return [self._item(image) for image in images]
        for name in names:  # so that none of them is evicted for another
            cache.touch_sender_cache_item(name)
        items = []
        for image, name in zip(images, names, strict=True):
            new = None if cache.is_cached_item(name) else (self._item(image), ())
            items.append(cache.get_and_update_item(new, name)[0])
        cache.release_sender_touches()
        self._renderer.update_mm_cache_stats()
        return items

    def _item(self, image: PreparedImage) -> MultiModalKwargsItem:
        """Return the normalised pixels: 3 x side x side, in the model's type."""
        pixels = torch.from_numpy(np.array(image.pixels)).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        normalised = pixels.sub_(self._mean).div_(self._std).to(self._dtype)
        return MultiModalKwargsItem({"pixel_values": MultiModalFieldElem(data=normalised, field=self._field)})


def why_unsupported(engine: "AsyncLLM") -> str | None:
    """Return why vLLM's renderer must make the input of an engine. None: `ImageInput` may, if its result is the same.

    Touches: see `ImageInput`, and `MultiModalConfig.mm_tensor_ipc`.
    """
    config = engine.model_config
    if config.hf_config.model_type != "llava":
        return "the model sees images in their own shape"
    if type(engine.renderer.mm_processor_cache) not in (type(None), LruKeyReplicatedSenderCache, MultiModalProcessorOnlyCache):
        return "vLLM's cache of images has another kind"
    if config.get_multimodal_config().mm_tensor_ipc == "torch_shm":
        return "images go to the engine by torch_shm"
    processor = _image_processor(engine)
    for name in ("do_rescale", "do_normalize", "image_mean", "image_std", "rescale_factor"):
        if not getattr(processor, name, None):
            return f"the model's image processor has no {name}"
    return None


def _image_processor(engine: "AsyncLLM") -> Any:
    return engine.renderer.get_mm_processor().info.get_hf_processor().image_processor


def _levels(values: Sequence[float], processor: Any) -> torch.Tensor:
    """Return the mean or the deviation of each colour in the levels of a pixel, 0 to 255, as Hugging Face's processor computes it."""
    return (torch.tensor(values) * (1.0 / processor.rescale_factor)).view(3, 1, 1)
