"""Prompts that the client writes itself, with images in `<img>` tags.

They are sent to `/api/v1/generate`, `/api/v1/stream` and `/api/v1/token-count`.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from llava_gateway.api.schema import RequestBody
from llava_gateway.api.text_generation_webui.sampling import ALL_IMAGES, SamplingFields
from llava_gateway.errors import InvalidRequest
from llava_gateway.serving.gateway import Gateway
from llava_gateway.types import CompletionRequest, ImageUrl, SamplingParams

_TAG_START = "<img src="
_TAG = re.compile(_TAG_START + r"""["'](data:[^"'<>]*+)["'][^<>]*+>""")
MAX_IMAGES = 1024
"""The upper bound of images in all texts of a request."""
PROMPT = (
    "text that goes to the model unchanged, control tokens included; "
    'images are inside the text, as `<img src="data:image/jpeg;base64,...">`'
)
BOS = "begin the prompt with the model's `<s>`; default true"


def uses_all_images(given: bool | None, gateway: Gateway) -> bool:
    """Return whether a request uses all of its images: as its field `add_all_images_to_prompt` says, or else the server's setting."""
    return gateway.settings.webui_images == "all" if given is None else given


def split_at_images(texts: Mapping[str, str], *, all_images: bool) -> dict[str, list[str | ImageUrl]]:
    """Split each text into strings and the images between them, in order. Tags without a `data:` URI stay text.

    `texts`: by the path of their field. `all_images`: False keeps only the last image of all texts, and drops the other images' tags.
    Raises InvalidRequest for too many images.
    """
    if sum(text.count(_TAG_START) for text in texts.values()) > MAX_IMAGES:
        param = next(path for path, text in texts.items() if _TAG_START in text)
        raise InvalidRequest(f"{param}: there may be at most {MAX_IMAGES} images.", param=param)
    split = {path: _TAG.split(text) for path, text in texts.items()}  # every second part is a URI
    dropped = 0 if all_images else sum(len(parts) // 2 for parts in split.values()) - 1
    result: dict[str, list[str | ImageUrl]] = {}
    for path, parts in split.items():
        result[path] = []
        for index, part in enumerate(parts):
            if index % 2 == 0:
                result[path].append(part)
            elif dropped > 0:
                dropped -= 1
            else:
                result[path].append(ImageUrl(part, path))
    return result


class GenerateBody(SamplingFields):
    """`POST /api/v1/generate`, and a message to `/api/v1/stream`."""

    prompt: str = Field(description=PROMPT)
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)
    add_bos_token: bool | None = Field(None, description=BOS)

    def to_completion(self, model: str, gateway: Gateway) -> CompletionRequest:
        """Return the gateway's request to `model`. Raises GatewayError."""
        sampling = self.sampling(gateway.model(model).tokenizer)
        return _completion(model, gateway, self.prompt, self.add_all_images_to_prompt, self.add_bos_token, sampling)


class TokenCountBody(RequestBody):
    """`POST /api/v1/token-count`."""

    prompt: str = Field(description="as in /api/v1/generate; each image counts with all its tokens")
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)
    add_bos_token: bool | None = Field(None, description=BOS)

    max_text: ClassVar = None

    def to_completion(self, model: str, gateway: Gateway) -> CompletionRequest:
        """Return the gateway's request to `model`, for `Gateway.tokenize`. Raises GatewayError."""
        return _completion(model, gateway, self.prompt, self.add_all_images_to_prompt, self.add_bos_token, SamplingParams())


def _completion(
    model: str, gateway: Gateway, prompt: str, all_images: bool | None, add_bos_token: bool | None, sampling: SamplingParams
) -> CompletionRequest:
    image_token = gateway.model(model).image_token
    parts = split_at_images({"prompt": prompt}, all_images=uses_all_images(all_images, gateway))["prompt"]
    images = tuple(part for part in parts if isinstance(part, ImageUrl))
    text = "".join(part if isinstance(part, str) else image_token for part in parts)
    if text.count(image_token) != len(images):
        raise InvalidRequest(f'prompt: send images as <img src="data:...">; {image_token} is not allowed in the text.', param="prompt")
    return CompletionRequest(
        model=model, prompt=text, images=images, add_special_tokens=add_bos_token is not False, sampling=sampling, stream=True
    )
