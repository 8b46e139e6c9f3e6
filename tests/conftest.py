"""Fixtures that all tests share."""

import os
import threading
from collections.abc import Iterator

import pytest
from helpers.origin import Origin

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # otherwise importing litellm asks a server on the internet for prices


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """A server of images, good and bad."""
    with Origin() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()
