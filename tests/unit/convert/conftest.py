"""Checkpoints that several tests of the conversion share."""

from pathlib import Path

import pytest
from helpers import original_checkpoints as originals
from helpers.conversion import convert_demo


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's vision tower, as a CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    originals.demo_clip(folder)
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, converted from its original."""
    return convert_demo(tmp_path_factory.mktemp("converted"))
