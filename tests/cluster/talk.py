"""Ways to ask a gateway, alone and many at once, and what came of it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
TIMEOUT = 120


@dataclass
class Told:
    """One answer, streamed or not."""

    status: int = 0
    text: str = ""
    end: str = ""
    """The finish reason, the code of the error, or the name of what httpx raised."""
    usage: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    """Seconds at which its deltas came."""
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.end in ("stop", "length")

    @property
    def cached_tokens(self) -> int:
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])


def client(url: str, key: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # so that requests spread over the ingress replicas
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT, limits=limits)


async def ask(http: httpx.AsyncClient, asked: dict[str, Any], told: Told | None = None) -> Told:
    """Never raises. `told`: what grows as the answer comes."""
    told, start = told or Told(), time.monotonic()
    try:
        if asked.get("stream"):
            await _listen(http, asked | {"stream_options": {"include_usage": True}}, told, start)
        else:
            answer = await http.post(CHAT, json=asked)
            told.status = answer.status_code
            _take(answer.json(), told)
    except httpx.HTTPError as error:
        told.end = type(error).__name__
    told.seconds = time.monotonic() - start
    return told


async def ask_all(http: httpx.AsyncClient, asked: Sequence[dict[str, Any]], at_once: int) -> list[Told]:
    places = asyncio.Semaphore(at_once)

    async def wait_and_ask(each: dict[str, Any]) -> Told:
        async with places:
            return await ask(http, each)

    return await asyncio.gather(*map(wait_and_ask, asked))


def ends(told: Sequence[Told]) -> Counter[tuple[int, str]]:
    return Counter((each.status, each.end) for each in told)


async def _listen(http: httpx.AsyncClient, asked: dict[str, Any], told: Told, start: float) -> None:
    async with http.stream("POST", CHAT, json=asked) as answer:
        told.status = answer.status_code
        if told.status != 200:
            _take(json.loads(await answer.aread()), told)
            return
        done = False
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: ") and (text := _take(json.loads(line.removeprefix("data: ")), told)):
                told.text += text
                told.times.append(time.monotonic() - start)
        if not done:
            told.end = "cut off"


def _take(said: dict[str, Any], told: Told) -> str:
    """What a chunk adds to the text."""
    if "error" in said:
        told.end = said["error"]["code"]
        return ""
    told.usage = said.get("usage") or told.usage
    for choice in said["choices"]:
        told.end = choice["finish_reason"] or told.end
        if "delta" in choice:
            return choice["delta"].get("content") or ""
        told.text = choice["message"]["content"]
    return ""
