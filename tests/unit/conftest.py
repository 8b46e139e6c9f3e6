"""The unit tests need no engine. Some compare the gateway with vLLM, Ray or transformers, and load them for seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.limits import Redis, needs_redis

SLOW_FILE = "pytestmark = pytest.mark.slow\n"
"""The line that marks all tests of a file as slow."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow files without an import if only the other tests run: imports of vLLM would take most of the time."""
    only_fast = config.option.markexpr == "not slow"
    return (only_fast and collection_path.suffix == ".py" and SLOW_FILE in collection_path.read_text()) or None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis for one test."""
    needs_redis()
    with Redis(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis for the tests of a file."""
    needs_redis()
    with Redis(tmp_path_factory.mktemp("redis")) as running:
        yield running
