"""Files that settings name: what is none is refused at once, whatever it would do to its reader."""

import os
from pathlib import Path

import pytest
from helpers.waiting import within

from llava_gateway.app import create_app
from llava_gateway.auth.api_keys import KeyFile, KeyFileError
from llava_gateway.client.remote import image_part
from llava_gateway.engine.vllm.lora import _read_shapes
from llava_gateway.files import read_file
from llava_gateway.settings import Settings, SettingsError

MODEL = "llava-demo"


@pytest.fixture(
    params=[os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, lambda path: os.truncate(path.open("wb").name, 17 << 20)],
    ids=["fifo", "device", "folder", "large"],
)
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What is no file, or a very large one."""
    path = tmp_path / "trap"
    request.param(path)
    return path


def test_keys_path_that_is_no_file_is_refused_at_start(trap: Path) -> None:
    with pytest.raises(SettingsError, match=r"trap: (Not a regular file|Is a directory|Larger than 16 MiB)"):
        within(30, lambda: create_app(Settings(model=MODEL, keys_file=str(trap)), engine=lambda: pytest.fail("nobody starts the engine")))


def test_keys_command_does_not_block_on_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys.json")
    with pytest.raises(KeyFileError, match="Not a regular file"):
        within(30, lambda: KeyFile(tmp_path / "keys.json").revoke("alice"))


def test_template_path_that_is_no_file_is_refused_at_start(trap: Path) -> None:
    with pytest.raises(SettingsError, match="is neither a file nor one of"):
        within(30, lambda: create_app(Settings(model=MODEL, template=str(trap)), engine=lambda: pytest.fail("nobody starts the engine")))


def test_adapter_with_a_fifo_for_weights_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(FileNotFoundError):
        within(30, lambda: _read_shapes(tmp_path / "adapter_model.safetensors"))


def test_chat_command_does_not_block_on_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cat.png")
    with pytest.raises(OSError, match="Not a regular file"):
        within(30, lambda: image_part(str(tmp_path / "cat.png")))


def test_file_over_the_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link", 1 << 20) == bytes(1 << 20)
    with (tmp_path / "file").open("ab") as file:
        file.write(b"!")
    with pytest.raises(OSError, match="Larger than 1 MiB"):
        read_file(tmp_path / "link", 1 << 20)
