"""vLLM's Unix domain sockets, whose paths have at most 107 bytes. A longer path makes vLLM hang at its start."""

import os
import tempfile

import pytest

from llava_gateway.engine.vllm import launch
from llava_gateway.engine.vllm.launch import MAX_SOCKET_FOLDER, SOCKET_FOLDER
from llava_gateway.errors import EngineStartError


@pytest.mark.parametrize(("length", "chosen"), [(MAX_SOCKET_FOLDER, None), (MAX_SOCKET_FOLDER + 1, "/tmp")])
def test_long_folder_for_temporary_files_is_not_used_for_sockets(monkeypatch: pytest.MonkeyPatch, length: int, chosen: str | None) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (length - 1))
    monkeypatch.setenv(SOCKET_FOLDER, "")
    monkeypatch.delenv(SOCKET_FOLDER)
    launch._choose_socket_folder()
    assert os.environ.get(SOCKET_FOLDER) == chosen


def test_long_folder_of_the_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET_FOLDER, "/" + "x" * MAX_SOCKET_FOLDER)
    with pytest.raises(EngineStartError, match=SOCKET_FOLDER):
        launch._choose_socket_folder()
