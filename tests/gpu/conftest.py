"""The tests for a GPU: `make test-gpu`. Without --device all of them are skipped.

The last part of the output has the card, the figures that tests have noted, and the reason of each skipped test.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu.served import Note
from helpers.gpu import Device, find_device, vllm_version
from helpers.llava_15_shapes import Size, write_checkpoint
from helpers.server import Server, serve
from openai import OpenAI

pytest.register_assert_rewrite("integration.images.test_truth")

DEVICE = pytest.StashKey[Device]()
NOTES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cuda", "cpu"), help="run tests/gpu on this device; `cpu` shows that the tests themselves work")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTES] = []
    if kind := config.getoption("--device"):
        try:
            config.stash[DEVICE] = find_device(kind)
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--device"):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="tests/gpu runs with --device cuda or --device cpu"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--device"):
        return
    device = config.stash[DEVICE]
    terminalreporter.section(f"{device.kind}: {device.name}, vLLM {vllm_version()[0]}")
    for line in config.stash[NOTES]:
        terminalreporter.line(line)
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.line(f"not run: {report.nodeid.rpartition('::')[2]}: {report.longrepr[2].removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Device:
    return pytestconfig.stash[DEVICE]


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Note:
    """Write a line to the end of the output."""
    return pytestconfig.stash[NOTES].append


@pytest.fixture(scope="session")
def shapes(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the shapes of LLaVA-1.5-7B, for `--load-format dummy`; on a CPU a small one."""
    size: Size = "7b" if device.kind == "cuda" else "small"
    directory = tmp_path_factory.mktemp("shapes") / f"llava-1.5-{size}"
    write_checkpoint(directory, size)
    return directory


@pytest.fixture(scope="module")
def server(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model on the device."""
    with serve(tmp_path_factory.mktemp("demo"), "--allow-networks", "127.0.0.0/8", "--max-num-seqs", "64") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    """OpenAI's SDK."""
    return OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=120)
