"""Of the simulation that `routing.py` draws its tables from: what is assumed of users and engines, and what is kept of them.

The engine is as coarse as the question allows: prefills one after the other, answers side by side, and a prefill the slower the more
answers are being written. Its numbers are assumptions with their reasons beside them, to be replaced by your own."""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

PREFILL = 0.055
"""GPU seconds for an image whose tokens are not in the KV cache: 597 tokens through 7 billion weights at half of an A100's 312 TFLOP/s."""
TEXT = 0.005
"""GPU seconds for the words of a turn: some fifty tokens likewise."""
PROCESS = 0.002
"""Seconds before the GPU has an image that vLLM has not prepared either: 1.5 ms were measured for its processor."""
ANSWER = 0.047
"""GPU seconds for an answer of 104 tokens: with the two above 0.107, for an A100 was measured to finish 9.33 such requests a second."""
ANSWER_SECONDS = 3.0
"""From first to last token of it: 29 ms for each of the 104."""
ANSWERS_AT_MOST = 0.75
"""Of the GPU, that answers get while prompts wait."""
SEATS = 128
"""Requests that fit a replica's KV cache at once: 115,000 tokens of 0.52 MB in the 60 GB that weights leave of 80, by 900 a request."""
KV_IMAGES = 170
"""Images that it remembers: as many tokens, by 676 for an image and the words about it."""
PREPARED_IMAGES = 6340
"""Images that vLLM's multimodal cache holds: 4 GiB by 336 x 336 x 3 numbers of two bytes."""
HEARD = 10.0
"""Seconds that a router of Ray Serve believes what it last heard of a replica's load."""


@dataclass(frozen=True, slots=True)
class Users:
    rate: float = 5.5
    """Requests a second for each replica: six tenths of what it could answer if it remembered nothing of chats with one image."""
    turns: int = 4
    """Of a chat, on average; each number from 1 to twice that is as likely as another, but for itself."""
    think: float = 20.0
    """Seconds between an answer and the next question, on average: to read a hundred tokens and write a line."""
    second: float = 0.3
    """Of chats, that begin with two images rather than one."""
    more: float = 0.15
    """Of later turns, that add an image."""
    hot: float = 0.2
    """Of chats, that begin with an image that others have, too: a product's, a template's, a meme."""
    images: int = 50
    """Of those. The n-th most popular is asked for 1/n times as often as the first."""


@dataclass(slots=True)
class Chat:
    images: list[int]
    """Those so far: each turn shows all of them."""
    turns: int
    """Still to come."""
    ingress: int = 0
    """That routed its last one."""


class Images:
    """Those that a replica remembers; the least recently used go first."""

    def __init__(self, room: int) -> None:
        self._room, self._images = room, OrderedDict[int, None]()

    def use(self, image: int) -> bool:
        """Whether it was there."""
        known = image in self._images
        self._images[image] = None
        self._images.move_to_end(image)
        if len(self._images) > self._room:
            self._images.popitem(last=False)
        return known


@dataclass(slots=True)
class Replica:
    name: str
    kv: Images
    prepared: Images
    chats: dict[int, Chat] = field(default_factory=dict)
    """Whose requests it has, by the request."""
    seated: int = 0
    """Of those requests, that fit its KV cache; the others are waiting."""
    answering: int = 0
    free: float = 0.0
    """When the prefills that are certain are done."""
    waiting: deque[tuple[int, float]] = field(default_factory=deque)
    area: float = 0.0
    """Requests times seconds."""
    since: float = 0.0


class View:
    """What one ingress knows of the replicas' load, as Ray Serve's router has it: what it heard last, and after ten seconds nothing."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[int, float]] = {}

    def hear(self, name: str, load: int, now: float) -> None:
        self._heard[name] = (load, now)

    def load(self, name: str, now: float) -> int | None:
        load, when = self._heard.get(name, (0, -math.inf))
        return load if now - when <= HEARD else None


@dataclass(slots=True)
class Seen:
    """Of the requests of some time."""

    waits: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    again: int = 0
    """Images that some replica had been shown before."""
    kv_hits: int = 0
    prepared_hits: int = 0
    imbalance: float = 0.0
    """The requests that the busiest replica had on average, by those that all had."""
    excess: float = -math.inf
    """Most that the replica chosen had above the bound, before it got the request."""

    @property
    def kv(self) -> float:
        return self.kv_hits / max(self.again, 1)

    @property
    def prepared(self) -> float:
        return self.prepared_hits / max(self.again, 1)

    def wait(self, percent: float) -> float:
        return float(np.percentile(self.waits, percent)) if self.waits else math.nan


def gather_limited(found: Sequence[Seen]) -> Seen:
    """As if all had been seen in one cluster; of the imbalances the mean."""
    return Seen(
        waits=[wait for seen in found for wait in seen.waits],
        again=sum(seen.again for seen in found),
        kv_hits=sum(seen.kv_hits for seen in found),
        prepared_hits=sum(seen.prepared_hits for seen in found),
        imbalance=sum(seen.imbalance for seen in found) / len(found),
        excess=max(seen.excess for seen in found),
    )
