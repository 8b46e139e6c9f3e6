"""Deployed anew under load; then several models under their names, chats that stay with the replica that has their images, replicas that
come and go with the load, and limits that gateways share."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest
from cluster.conftest import LONG, PER_MINUTE, PLAIN, PLAIN_DEPLOYMENT, Grown
from cluster.talk import Told, ask, ask_all, client, ends
from helpers import lora, programs
from helpers.contract import ContractTransport
from helpers.requests import MODEL, body, image, image_part, user
from helpers.waiting import wait_for
from openai import AuthenticationError, NotFoundError, OpenAI

from llava_gateway.demo.images import Grid, data_uri, describe, draw_noisy, encode, random_grid

GRID: Grid = ("red", "blue", "green", "orange")
CHATS = 64
"""In each engine's memory there is room for the first turns of all."""
KNOWN = 512
"""Tokens that a replica has to know beforehand for that to be the image: what comes before an image is a few, and the image is 576."""
AT_ONCE = 8


@pytest.fixture(scope="module")
def sdk(grown: Grown) -> Iterator[OpenAI]:
    with httpx.Client(transport=ContractTransport(), timeout=120) as http:
        yield OpenAI(base_url=f"{grown.cluster.url}/v1", api_key=grown.keys["alice"], max_retries=0, http_client=cast(Any, http))


@pytest.mark.timeout(400)
def test_redeployment_fails_no_request(grown: Grown) -> None:
    told = [each for each, _ in grown.meanwhile]
    seconds = max(each.seconds for each in told)
    print(f"{len(told)} requests meanwhile, the longest {seconds:.1f} s: {ends(told)}")
    assert set(ends(told)) == {(200, "stop"), (200, "length")}
    assert len(told) > 50
    assert all(each.text.startswith(truth) for each, truth in grown.meanwhile)
    assert all(each.usage["completion_tokens"] == LONG for each in told if each.end == "length")


def test_models_and_their_names(sdk: OpenAI) -> None:
    listed = {model.id: model.model_dump().get("parent") for model in sdk.models.list()}
    assert listed == {MODEL: None, "demo": None, PLAIN: None, "corner": PLAIN}
    for name in listed:
        answer = sdk.chat.completions.create(**body(image(GRID), lora.ASKED, model=name))
        assert (answer.model, answer.choices[0].message.content) == (name, "Red." if name == "corner" else describe([GRID]))
    with pytest.raises(NotFoundError):
        sdk.chat.completions.create(**body("Hello", model="corners"))
    with pytest.raises(AuthenticationError):
        sdk.with_options(api_key="wrong").models.list()


def test_later_turns_reach_the_replica_with_their_images(grown: Grown) -> None:
    share = asyncio.run(_share_known(grown, MODEL))
    print(f"with affinity {share:.2f} of second turns found their image known")
    assert share >= 0.9


def test_gateways_share_limits(grown: Grown, redis: str) -> None:
    """Each of the two lets some in, and both together no more than one may."""
    if redis == "memory":
        programs.find("redis-server")

    def status(_: int) -> int:
        headers = {"authorization": f"Bearer {grown.keys['dave']}"}
        return httpx.get(f"{grown.cluster.url}/v1/models", headers=headers, timeout=30).status_code

    before = _listed(grown)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(status, range(3 * PER_MINUTE)))
    assert sorted(answers) == [200] * PER_MINUTE + [429] * 2 * PER_MINUTE
    let_in = [number - before.get(replica, 0) for replica, number in _listed(grown).items()]
    assert sum(let_in) == PER_MINUTE
    assert len(let_in) == 2
    assert min(let_in) > 0


@pytest.fixture(scope="module")
def busy(grown: Grown) -> Grown:
    """So much is asked of the second model that it has another replica."""
    assert len(grown.cluster.replicas(PLAIN_DEPLOYMENT)) == 1

    async def load() -> None:
        async with client(grown.cluster.url, grown.keys["alice"]) as http:
            asking = asyncio.create_task(_ask_on(http))
            seconds = await asyncio.to_thread(wait_for, lambda: len(grown.cluster.replicas(PLAIN_DEPLOYMENT)) == 2, 120, grown.cluster.log)
            print(f"a second replica after {seconds:.1f} s")
            asking.cancel()
            await asyncio.wait((asking,))

    asyncio.run(load())
    return grown


def test_without_affinity_half_of_the_turns_are_cached(busy: Grown) -> None:
    share = asyncio.run(_share_known(busy, PLAIN))
    print(f"without affinity {share:.2f} of second turns found their image known")
    assert 0.3 <= share <= 0.7


def test_autoscaling_removes_an_idle_replica(busy: Grown) -> None:
    async def ask_meanwhile() -> list[Told]:
        """One at a time, which is no reason to keep two."""
        told = []
        async with client(busy.cluster.url, busy.keys["alice"]) as http:
            going = asyncio.create_task(asyncio.to_thread(wait_for, lambda: len(busy.cluster.replicas(PLAIN_DEPLOYMENT)) == 1, 90))
            while not going.done():
                told.append(await ask(http, body(image(GRID), "Describe this image.", model=PLAIN)))
            await going
        return told

    told = asyncio.run(ask_meanwhile())
    assert {each.text for each in told} == {describe([GRID])}


async def _share_known(grown: Grown, model: str) -> float:
    """Of second turns, those whose image the replica that answered had seen in the first."""
    rng = random.Random(model)
    grids = [random_grid(rng) for _ in range(CHATS)]
    images = [image_part(data_uri(encode(draw_noisy(grid, rng)))) for grid in grids]
    first = [[user(each, "Describe this image.")] for each in images]
    answers = [{"role": "assistant", "content": describe([grid])} for grid in grids]
    second = [[*turn, answer, user("What color is the top left?")] for turn, answer in zip(first, answers, strict=True)]
    async with client(grown.cluster.url, grown.keys["alice"]) as http:
        told = [
            await ask_all(http, [{"model": model, "messages": turn, "temperature": 0, "max_tokens": 4} for turn in turns], AT_ONCE)
            for turns in (first, second)
        ]
    assert set(ends([*told[0], *told[1]])) <= {(200, "stop"), (200, "length")}
    assert not any(each.cached_tokens >= KNOWN for each in told[0])
    return sum(each.cached_tokens >= KNOWN for each in told[1]) / CHATS


async def _ask_on(http: httpx.AsyncClient) -> None:
    while True:
        await ask_all(http, [body("Hello", model=PLAIN, max_tokens=200, ignore_eos=True)] * AT_ONCE, AT_ONCE)


def _listed(grown: Grown) -> dict[str, float]:
    """How often each gateway has answered what models there are."""
    return grown.cluster.metric("llava_http_requests_total", grown.keys["alice"], route="/v1/models", status="200")
