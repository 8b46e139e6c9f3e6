"""Prompts of converted checkpoints have the token ids that LLaVA's own code gives, for every template."""

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers import original_checkpoints as originals
from helpers import original_prompts
from helpers.prompts import ANSWERED, ASKED, GOLDEN, IMAGE, SYSTEM, model_info

from llava_gateway.cli.convert import main
from llava_gateway.model_info import ModelInfo
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import CompletionRequest

pytestmark = pytest.mark.slow


class Converted:
    """A converted checkpoint that was trained with or without `<im_start>` and `<im_patch>`."""

    def __init__(self, folder: Path, *, start_end: bool, patch_token: bool) -> None:
        source, checkpoint = folder / "src", folder / "dst"
        self._trained = {"start_end": start_end, "patch_token": patch_token}
        originals.random_original(source, mm_use_im_start_end=start_end, mm_use_im_patch_token=patch_token)
        self._pieces = originals.sentencepiece_tokenizer(source)
        (source / "added_tokens.json").write_text(json.dumps(original_prompts.added_tokens(**self._trained)))
        assert main([str(source), str(checkpoint)]) == 0
        self.renderer = PromptRenderer(described(checkpoint))

    def original_ids(self, prompt: str) -> list[int]:
        """Return what LLaVA's code makes of a prompt, with this checkpoint's token for an image."""
        token_ids = original_prompts.original_ids(prompt, self._pieces, **self._trained)
        return [self.renderer.image_id if token_id == original_prompts.IMAGE else token_id for token_id in token_ids]


def described(checkpoint: Path) -> ModelInfo:
    """Return the description of a checkpoint as far as its prompts depend on it."""
    config = json.loads((checkpoint / "config.json").read_bytes())
    return dataclasses.replace(
        model_info((checkpoint / "chat_template.jinja").read_text()),
        tokenizer=Tokenizer((checkpoint / "tokenizer.json").read_text()),
        image_start_end=config.get("mm_use_im_start_end"),
    )


@pytest.fixture(scope="module", params=product((True, False), repeat=2), ids=lambda flags: "start_end={}, patch_token={}".format(*flags))
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    start_end, patch_token = request.param
    return Converted(tmp_path_factory.mktemp("original"), start_end=start_end, patch_token=patch_token)


@pytest.mark.parametrize("name", [None, *GOLDEN])
def test_prompt_has_the_token_ids_of_the_original(converted: Converted, name: str | None) -> None:
    """A checkpoint's own template is `vicuna_v1`."""
    for chat, prompt in zip((ASKED, ANSWERED, SYSTEM), GOLDEN[name or "vicuna_v1"], strict=True):
        wanted = converted.original_ids(prompt)
        assert converted.renderer.chat(chat, name).token_ids == wanted
        written = CompletionRequest(model="m", prompt=prompt, images=(IMAGE,) * prompt.count("<image>"))
        assert converted.renderer.render(written).token_ids == wanted


def test_prompt_with_several_images_has_the_token_ids_of_the_original(converted: Converted) -> None:
    prompt = "<image><image>\n Is <image> like the others?\n<image>"
    written = CompletionRequest(model="m", prompt=prompt, images=(IMAGE,) * 4)
    assert converted.renderer.render(written).token_ids == converted.original_ids(prompt)
