"""The token ids that LLaVA's own code makes of a prompt, for converted checkpoints with `sentencepiece_tokenizer`."""

import re
from collections.abc import Mapping

from sentencepiece import SentencePieceProcessor

IMAGE = -200
"""Stands for an image among the token ids, as in LLaVA's code."""
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
SENTENCEPIECE_TOKENS = 640


def added_tokens(*, start_end: bool, patch_token: bool) -> dict[str, int]:
    """Return the ids of the tokens that LLaVA adds to the vocabulary (`initialize_vision_tokenizer` in llava/model/llava_arch.py)."""
    texts = ["<im_patch>"] * patch_token + ["<im_start>", "<im_end>"] * start_end
    return {text: SENTENCEPIECE_TOKENS + number for number, text in enumerate(texts)}


def original_ids(prompt: str, pieces: SentencePieceProcessor, *, start_end: bool, patch_token: bool = False) -> list[int]:
    """Return the token ids of a prompt with `<image>` for each image.

    The model worker wraps each `<image>` (llava/serve/model_worker.py). Then the text is split at `<image>`, each part is tokenized by
    itself, and the image takes the place between two parts (`tokenizer_image_token` in llava/mm_utils.py).
    """
    if start_end:
        prompt = prompt.replace("<image>", "<im_start><image><im_end>")
    added = added_tokens(start_end=start_end, patch_token=patch_token)
    first, *others = (_tokenize(part, pieces, SPECIAL | added) for part in prompt.split("<image>"))
    return [SPECIAL["<s>"], *first, *(token for part in others for token in (IMAGE, *part))]


def _tokenize(text: str, pieces: SentencePieceProcessor, special: Mapping[str, int]) -> list[int]:
    """Return the token ids of a text without images, as transformers' tokenizer of LLaMA: the parts between special tokens are separate."""
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    return [token for part in parts for token in ([special[part]] if part in special else pieces.encode(part))]
