"""The tokens `<im_start>` and `<im_end>`, which some LLaVA checkpoints were trained to see around each image.

LLaVA's training adds them if `mm_use_im_start_end` is set (`preprocess_multimodal` in llava/train/train.py), and its model worker adds them
to every prompt (llava/serve/model_worker.py). `mm_use_im_patch_token` adds `<im_patch>` to the vocabulary, and no prompt has it.
"""

import logging
import re

from llava_gateway.errors import EngineStartError
from llava_gateway.model_info import ModelInfo
from llava_gateway.settings import ImageStartEnd

log = logging.getLogger(__name__)

START, END = "<im_start>", "<im_end>"


class ImageMarkers:
    """Puts `<im_start>` and `<im_end>` around each image of a prompt."""

    def __init__(self, image_token: str) -> None:
        """`image_token`: the model's placeholder for an image, such as `<image>`."""
        self._image_token = image_token
        self._wrapped = f"{START}{image_token}{END}"
        self._images = re.compile(f"{START}(?:(?!{START}).)*?{END}|{re.escape(image_token)}", re.DOTALL)

    def wrap(self, prompt: str) -> str:
        """Return the prompt with the tokens around each image. An image that already stands between them stays as it is."""
        return self._images.sub(lambda found: self._wrapped if found[0] == self._image_token else found[0], prompt)


def image_markers(model: ModelInfo, setting: ImageStartEnd = "auto") -> ImageMarkers | None:
    """Return the markers for the images of a model. None: the model was trained without them.

    `setting`: overrules the checkpoint's record, if it is "on" or "off". A checkpoint without a record, but with the tokens, gets the
    markers: LLaVA's code adds the tokens only for a training that uses them. A warning in the log says so, unless the checkpoint's own chat
    template writes the tokens. Raises EngineStartError if the tokens are wanted and the tokenizer does not have them.
    """
    if setting == "off" or (setting == "auto" and model.image_start_end is False):
        return None
    has_tokens = all(
        model.tokenizer.token_id(token) in model.tokenizer.encode(token, add_special_tokens=False).ids for token in (START, END)
    )
    if not has_tokens and setting == "on":
        raise EngineStartError(f"--image-start-end is on, and the model's tokenizer has no {START} and {END}; leave the flag out")
    if not has_tokens and model.image_start_end:
        raise EngineStartError(
            f"config.json says mm_use_im_start_end, and the tokenizer has no {START} and {END}; convert the original checkpoint again, "
            "or set --image-start-end off"
        )
    if has_tokens and setting == "auto" and model.image_start_end is None and START not in model.chat_template:
        log.warning(
            "the tokenizer has %s and %s, and the checkpoint does not say whether training put them around images: prompts have them; "
            "--image-start-end on or off decides",
            START,
            END,
        )
    return ImageMarkers(model.image_token) if has_tokens else None
