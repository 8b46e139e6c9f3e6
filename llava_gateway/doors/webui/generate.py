"""Prompts that the client has written out itself: `/api/v1/generate`, `/api/v1/stream` and `/api/v1/token-count`."""

from typing import ClassVar

from pydantic import Field

from llava_gateway.chat import CompletionRequest, ImageUrl, Sampling
from llava_gateway.doors.webui.images import take_apart
from llava_gateway.doors.webui.sampling import ALL_IMAGES, SamplingFields
from llava_gateway.errors import InvalidRequest
from llava_gateway.gateway import Gateway
from llava_gateway.web.fields import RequestBody

PROMPT = 'text that goes to the model as it is, control tokens and all; pictures in place, as `<img src="data:image/jpeg;base64,...">`'
BOS = "begin the prompt with the model's `<s>`; default true"


class GenerateBody(SamplingFields):
    """`POST /api/v1/generate`, and a message to `/api/v1/stream`."""

    prompt: str = Field(description=PROMPT)
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)
    add_bos_token: bool | None = Field(None, description=BOS)

    def to_completion(self, model: str, gateway: Gateway) -> CompletionRequest:
        """Raises GatewayError."""
        sampling = self.sampling(gateway.model(model).vocabulary)
        return _completion(model, gateway, self.prompt, self.add_all_images_to_prompt, self.add_bos_token, sampling)


class TokenCountBody(RequestBody):
    """`POST /api/v1/token-count`."""

    prompt: str = Field(description="as /api/v1/generate takes it; each picture counts in full, and none is opened")
    add_all_images_to_prompt: bool | None = Field(None, description=ALL_IMAGES)
    add_bos_token: bool | None = Field(None, description=BOS)

    max_text: ClassVar = None

    def to_completion(self, model: str, gateway: Gateway) -> CompletionRequest:
        """Raises GatewayError."""
        return _completion(model, gateway, self.prompt, self.add_all_images_to_prompt, self.add_bos_token, Sampling())


def _completion(
    model: str, gateway: Gateway, prompt: str, every_image: bool | None, add_bos_token: bool | None, sampling: Sampling
) -> CompletionRequest:
    image_token = gateway.model(model).image_token
    pieces = take_apart({"prompt": prompt}, every=bool(every_image))["prompt"]
    images = tuple(piece for piece in pieces if isinstance(piece, ImageUrl))
    text = "".join(piece if isinstance(piece, str) else image_token for piece in pieces)
    if text.count(image_token) != len(images):
        raise InvalidRequest(f'prompt: pictures go in as <img src="data:...">, and {image_token} cannot be written.', param="prompt")
    return CompletionRequest(
        model=model, prompt=text, images=images, add_special_tokens=add_bos_token is not False, sampling=sampling, stream=True
    )
