"""The unit tests need no engine. Some compare the gateway with vLLM, Ray or transformers, and load them for seconds."""

from pathlib import Path

import pytest

SLOW_FILE = "pytestmark = pytest.mark.slow\n"
"""The line that marks all tests of a file as slow."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow files without an import if only the other tests run: imports of vLLM would take most of the time."""
    only_fast = config.option.markexpr == "not slow"
    return (only_fast and collection_path.suffix == ".py" and SLOW_FILE in collection_path.read_text()) or None
