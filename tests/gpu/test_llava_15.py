"""A model in the shapes of LLaVA-1.5-7B in half precision: its start, its answers, and the end of its engine and of its server."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gpu.served import Note, Served, has_ended, serve_shapes
from helpers.gpu import Device
from helpers.waiting import wait_for

RETURN = 60
"""Seconds in which a killed engine must be back."""
MARGIN = 1024
"""MiB of GPU memory by which two values may differ that should be equal."""
STREAMS = 32


@pytest.fixture(scope="module")
def served(device: Device, shapes: Path, note: Note, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_shapes(device, shapes, tmp_path_factory.mktemp("served")) as started:
        note(f"{shapes.name}, 16 bits: {started.summary()}")
        yield started


def test_image_takes_576_tokens(served: Served) -> None:
    usage = served.ask()["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == 576
    assert usage["completion_tokens"] == 8


def test_fast_paths_of_tokens_and_images_are_taken(served: Served) -> None:
    """The comparison with vLLM's renderer at the start passes in half precision, too."""
    paths = {path: served.server.metric(f'llava_fast_path{{of="{path}"}}') for path in ("tokens", "images")}
    assert paths == {"tokens": 1, "images": 1}, served.server.log.read_text()


def test_batch_of_images_is_answered(served: Served) -> None:
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(lambda number: served.ask(seed=number, temperature=1, top_p=0.9), range(STREAMS)))
    assert {answer["usage"]["completion_tokens"] for answer in answers} == {8}


def test_probabilities_and_formats_are_computed(served: Served) -> None:
    (choice,) = served.ask(logprobs=True, top_logprobs=5)["choices"]
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 5
    (choice,) = served.ask(structured_outputs={"choice": ["red", "blue"]}, ignore_eos=False)["choices"]
    assert choice["message"]["content"] in ("red", "blue")


def test_killed_engine_is_back_within_a_minute_and_its_memory_is_freed(served: Served, note: Note) -> None:
    killed, held = served.processes(), served.memory()
    least = held

    def is_back() -> bool:
        nonlocal least
        least = min(least, served.memory())  # the next engine imports its modules before it takes memory
        return served.is_ready()

    killed[0].kill()
    wait_for(lambda: not served.is_ready())
    seconds = wait_for(is_back, RETURN, served.server.log.read_text)
    assert served.ask()["usage"]["completion_tokens"] == 8
    assert all(map(has_ended, killed))
    assert least <= MARGIN
    assert served.memory() <= held + MARGIN
    assert served.device.memory_of({process.pid for process in killed}) == 0
    memory = f"; GPU memory {held:,} MiB, then {least:,}, then {served.memory():,}" if served.device.cards else ""
    note(f"kill -9 of the engine: back after {seconds:.0f} s{memory}")


def test_killed_gateway_leaves_no_process_and_no_memory(served: Served) -> None:
    processes = served.processes()
    served.server.process.send_signal(signal.SIGKILL)
    wait_for(lambda: all(map(has_ended, processes)), 30)
    wait_for(lambda: served.memory() <= MARGIN, 30)
