"""Two engines of one model behind two gateways: the truth through the whole path, and the death of either engine."""

import asyncio
import base64
import json
import os
import random
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import httpx
import pytest
from cluster.local_cluster import DEPLOY_TIMEOUT, Cluster, engine_of
from cluster.talk import Told, ask, ask_all, client, ends
from helpers.contract import ContractTransport, check_error
from helpers.requests import MODEL, body, image, image_part, user
from helpers.waiting import wait_for
from openai import BadRequestError, NotFoundError, OpenAI
from websockets.sync.client import connect

from llava_gateway.demo.images import data_uri, describe, draw, encode, random_grid

GRIDS = [random_grid(random.Random(number)) for number in range(24)]
IMAGE_TOKENS = 576
SCHEMA = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"], "additionalProperties": False}
LONG = 2400
"""Tokens of an answer that lasts some seconds."""
ENDLESS = 3500
"""Of one that lasts longer than any test here."""
STREAMS = 8
NOTICED = 30
"""Seconds. An engine that starts anew takes time from the other one, where cores are few."""
AT_LAST = 90
"""Seconds within which something happens even where the cores have other work, and this process waits for one, too."""


@pytest.fixture(scope="module")
def sdk(cluster: Cluster) -> Iterator[OpenAI]:
    """Every answer it gets is checked against OpenAI's schema."""
    with httpx.Client(transport=ContractTransport(), timeout=120) as http:
        yield OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, http_client=cast(Any, http))


def test_concurrent_images_get_their_own_answers(cluster: Cluster) -> None:
    """Streamed and not; none gets the answer to another one's image."""
    asked = [body(image(grid), "Describe this image.", stream=stream) for grid in GRIDS for stream in (False, True)]

    async def ask_them() -> list[Told]:
        async with client(cluster.url) as http:
            return await ask_all(http, asked, at_once=16)

    told = asyncio.run(ask_them())
    assert [each.text for each in told] == [describe([grid]) for grid in GRIDS for _ in range(2)]
    assert {each.usage["prompt_tokens_details"]["image_tokens"] for each in told} == {IMAGE_TOKENS}
    assert {each.usage["prompt_tokens"] - each.usage["prompt_tokens_details"]["text_tokens"] for each in told} == {IMAGE_TOKENS}


@pytest.mark.parametrize("number", [2, 4])
def test_several_images_in_order(sdk: OpenAI, number: int) -> None:
    completion = sdk.chat.completions.create(**body(*map(image, GRIDS[:number]), "Describe these images."))
    assert completion.choices[0].message.content == describe(GRIDS[:number])
    assert completion.usage.prompt_tokens_details.image_tokens == number * IMAGE_TOKENS


def test_large_photograph_and_a_second_turn(sdk: OpenAI) -> None:
    photo = image_part(data_uri(encode(draw(GRIDS[0], (2400, 1800)), "JPEG", quality=90)))
    said = {"role": "assistant", "content": describe([GRIDS[0]])}
    chat = [user(photo, "Describe this image."), said, user("What color is the top left?")]
    completion = sdk.chat.completions.create(**body() | {"messages": chat})
    assert completion.choices[0].message.content == f"{GRIDS[0][0].capitalize()}."


def test_choices_and_log_probabilities(sdk: OpenAI) -> None:
    asked = body(image(GRIDS[0]), "Describe this image.", n=3, temperature=0.01, logprobs=True, top_logprobs=2)
    completion = sdk.chat.completions.create(**asked)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    for choice in completion.choices:
        assert choice.message.content == describe([GRIDS[0]])
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_structured_output(sdk: OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "color", "schema": SCHEMA}}
    completion = sdk.chat.completions.create(**body("Hello", response_format=wanted))
    assert json.loads(completion.choices[0].message.content or "")["color"] in ("red", "blue")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}}, "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"temperature": -1}, "temperature"),
        ({"min_tokens": 100_000, "max_tokens": 100_000}, "messages"),
        ({"messages": [user(image_part("data:image/png;base64,AAAA"))]}, "messages[0].content[0].image_url.url"),
    ],
)
def test_bad_requests(cluster: Cluster, fields: dict[str, object], param: str) -> None:
    """Those that only an engine could find out, too."""
    answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body("Hello") | fields, timeout=60)
    assert answer.status_code == 400, answer.text
    check_error(answer.text, 400)
    assert answer.json()["error"]["param"].startswith(param)


def test_unknown_model_is_a_404(sdk: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        sdk.chat.completions.create(**body("Hello", model="gpt-4o"))
    with pytest.raises(BadRequestError):
        sdk.chat.completions.create(**body(*[image(GRIDS[0])] * 8, "Describe these images."))
    assert [model.id for model in sdk.models.list()] == [MODEL]


def test_llava_worker_api(cluster: Cluster) -> None:
    encoded = base64.b64encode(encode(draw(GRIDS[0]))).decode()
    asked = {"model": MODEL, "prompt": "USER: <image>\nDescribe this image. ASSISTANT:", "images": [encoded], "temperature": 0}
    answer = httpx.post(f"{cluster.url}/worker_generate_stream", json=asked, timeout=60)
    assert answer.status_code == 200
    assert describe([GRIDS[0]]) in answer.text.split("\0")[-2]


def test_websocket_api(cluster: Cluster) -> None:
    """text-generation-webui's."""
    asked = {"prompt": "USER: Hello ASSISTANT:", "max_new_tokens": 100, "do_sample": False, "repetition_penalty": 1.0}
    whole = httpx.post(f"{cluster.url}/api/v1/generate", json=asked, timeout=60).json()["results"][0]["text"]
    with connect(f"ws{cluster.url.removeprefix('http')}/api/v1/stream") as stream:
        stream.send(json.dumps(asked))
        events = [json.loads(stream.recv(timeout=60))]
        while events[-1]["event"] == "text_stream":
            events.append(json.loads(stream.recv(timeout=60)))
    assert len(events) > 3
    assert "".join(event["text"] for event in events[:-1]) == whole
    assert events[-1]["event"] == "stream_end"


def test_deltas_arrive_as_they_are_generated(cluster: Cluster) -> None:
    async def listen() -> Told:
        async with client(cluster.url) as http:
            return await ask(http, body(image(GRIDS[1]), "Hello", stream=True, ignore_eos=True, max_tokens=LONG))

    told = asyncio.run(listen())
    assert told.is_whole
    assert told.usage["completion_tokens"] == LONG
    assert len(told.times) > 100
    first, half, last = told.times[0], told.times[len(told.times) // 2], told.times[-1]
    assert first < last / 4
    assert first + 0.2 * (last - first) < half < first + 0.8 * (last - first)


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_engine(cluster: Cluster, stream: bool) -> None:
    """Both engines work for clients that leave, and stop, though the answers would have gone on."""
    asked = 0

    async def keep_asking(http: httpx.AsyncClient) -> None:
        """For ever: where the cores have other work, an answer may end before the others are seen to have begun."""
        nonlocal asked
        while True:
            asked += 1
            await ask(http, body("Hello", stream=stream, ignore_eos=True, max_tokens=ENDLESS))

    async def ask_and_leave() -> None:
        async with client(cluster.url) as http:
            tasks = [asyncio.create_task(keep_asking(http)) for _ in range(STREAMS // 2)]
            await asyncio.to_thread(wait_for, lambda: sum(running(cluster)) == STREAMS // 2, AT_LAST)
            # those of one moment may all choose the same engine; who comes later goes where fewer are
            tasks += [asyncio.create_task(keep_asking(http)) for _ in range(STREAMS // 2)]
            await asyncio.to_thread(wait_for, lambda: sum(now := running(cluster)) == STREAMS and min(now) > 0, AT_LAST)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def counted() -> tuple[list[float], float, float]:
        return running(cluster), _booked(cluster) - booked, _generated(cluster) - before

    def is_over() -> bool:
        """The engines are free, and what they made is booked, which a gateway does when it has heard of it."""
        still, paid, generated = counted()
        return still == [0, 0] and paid >= generated

    before, booked = _generated(cluster), _booked(cluster)
    asyncio.run(ask_and_leave())
    wait_for(is_over, AT_LAST, lambda: "running {}, {:.0f} tokens booked, {:.0f} generated".format(*counted()))
    _, paid, generated = counted()
    assert generated < asked * ENDLESS
    assert generated <= paid < 1.2 * generated  # who leaves pays for what was made


def running(cluster: Cluster) -> list[float]:
    """Requests in each engine, as it says itself."""
    return list(cluster.metric("vllm:num_requests_running").values())


def _generated(cluster: Cluster) -> float:
    """Tokens of all engines so far."""
    return sum(cluster.metric("vllm:generation_tokens_total").values())


def _booked(cluster: Cluster) -> float:
    """Of those, that clients pay for."""
    return sum(cluster.metric("llava_tokens_total", kind="completion").values())


@pytest.mark.parametrize("whose", ["replica", "engine"])
def test_killed_replica_under_load_loses_no_new_request(cluster: Cluster, whose: str) -> None:
    """Of what the dead one had, answers that had begun end with an error, and others are given to the other one, which goes on."""

    victim, engine = cluster.replicas(MODEL)

    async def load() -> tuple[list[Told], list[Told], list[Told]]:
        nonlocal victim, engine
        asked = body("Hello", ignore_eos=True, max_tokens=LONG)
        async with client(cluster.url) as http:
            told = [Told() for _ in range(STREAMS)]
            streams = [asyncio.create_task(ask(http, asked | {"stream": True}, each)) for each in told]
            wholes = [asyncio.create_task(ask(http, asked)) for _ in range(STREAMS)]
            await asyncio.to_thread(wait_for, lambda: all(each.times for each in told), NOTICED)
            assert not any(task.done() for task in (*streams, *wholes))
            victim = await asyncio.to_thread(cluster.busiest, MODEL)  # those of one moment may all have chosen the same one
            engine = engine_of(victim)
            os.kill((victim if whose == "replica" else engine).pid, signal.SIGKILL)
            late = await ask_all(http, [body(image(grid), "Describe this image.") for grid in GRIDS], at_once=8)
            return await asyncio.gather(*streams), await asyncio.gather(*wholes), late

    streams, wholes, late = asyncio.run(load())
    assert (200, "engine_dead") in (ended := set(ends(streams)))
    assert ended <= {(200, "length"), (200, "engine_dead")}
    others = [told for told in streams if told.is_whole]
    silence = max((later - sooner for told in others for sooner, later in pairwise(told.times)), default=0)
    assert silence < NOTICED
    assert set(ends(wholes)) == {(200, "length")}
    assert {told.usage["completion_tokens"] for told in (*others, *wholes)} == {LONG}
    assert [told.text for told in late] == [describe([grid]) for grid in GRIDS]
    assert max(told.seconds for told in late) < NOTICED
    wait_for(lambda: not victim.is_running() and not engine.is_running(), 10)
    back = wait_for(lambda: len(cluster.replicas(MODEL)) == 2 and cluster.is_deployed(), DEPLOY_TIMEOUT, cluster.log)
    print(f"{ends(streams)}, the others' longest silence {silence:.1f} s; two replicas again {back:.1f} s after the last answer")


def test_killed_gateway_under_load_frees_the_engine(cluster: Cluster) -> None:
    """Its clients lose their answers and its requests leave the engines; the other one's clients do not notice."""
    victim = cluster.replicas("ingress")[0]

    async def load() -> tuple[list[Told], list[Told]]:
        async with client(cluster.url) as http:
            told = [Told() for _ in range(STREAMS)]
            streams = [
                asyncio.create_task(ask(http, body("Hello", ignore_eos=True, max_tokens=ENDLESS, stream=True), each)) for each in told
            ]
            await asyncio.to_thread(wait_for, lambda: all(each.times for each in told), NOTICED)
            os.kill(victim.pid, signal.SIGKILL)
            late = await ask_all(http, [body(image(grid), "Describe this image.") for grid in GRIDS], at_once=8)
            await asyncio.to_thread(wait_for, lambda: sum(running(cluster)) == sum(not stream.done() for stream in streams), NOTICED)
            assert 0 < sum(stream.done() for stream in streams) < STREAMS
            for stream in streams:
                stream.cancel()
            await asyncio.wait(streams)
            return [each for each in told if each.end], late

    lost, late = asyncio.run(load())
    assert [told.text for told in late] == [describe([grid]) for grid in GRIDS]
    # The connection ends without the end of the answer. On a slow machine an answer of the other gateway may have ended by itself.
    assert set(ends(lost)) - {(200, "length")} == {(200, "RemoteProtocolError")}
    wait_for(lambda: len(cluster.replicas("ingress")) == 2 and cluster.is_deployed(), 60, cluster.log)
