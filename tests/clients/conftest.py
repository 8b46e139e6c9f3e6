"""One server for all clients."""

from collections.abc import Iterator

import pytest
from helpers.server import Server, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as started:
        yield started
