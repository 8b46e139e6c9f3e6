"""The demo model's processor and prompts."""

from typing import Any

import pytest
from helpers.prompts import model_info

from llava_gateway.demo import CHECKPOINT
from llava_gateway.prompts.renderer import PromptRenderer


@pytest.fixture(scope="package")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="package")
def renderer() -> PromptRenderer:
    return PromptRenderer(model_info())
