"""Checkpoints that several tests of the conversion share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's vision tower, as a CLIP."""
    from helpers import original_checkpoints as originals

    folder = tmp_path_factory.mktemp("clip")
    originals.demo_clip(folder)
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, converted from its original."""
    from helpers.conversion import convert_demo

    return convert_demo(tmp_path_factory.mktemp("converted"))
