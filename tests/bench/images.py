"""The cost of images: new and known ones of several sizes and formats, chats with images, and many images in one request."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.chat_requests import Row, Sample, about, chat, measure, misdescribed, row, user
from bench.peers import Peer
from bench.pictures import JPEGS, MEDIUM, OTHERS, Kind, grid_picture, new_pictures, picture_host

from llava_gateway.demo.images import Grid

GRIDS: tuple[Grid, ...] = (
    ("red", "blue", "green", "orange"),
    ("white", "yellow", "black", "purple"),
    ("blue", "blue", "red", "white"),
    ("green", "purple", "red", "white"),
)
"""Grids that the demo model describes correctly."""
CHAT_IMAGES = 4
TURNS = 8
MANY = 10
ANSWER = "The top left is red."


def rows(peer: Peer, samples: int) -> Iterator[Row]:
    """Yield the rows of single images, by size and format. `samples`: requests for each row."""
    for kind in (*JPEGS, *OTHERS):
        fault = misdescribed(peer, GRIDS[:1], [grid_picture(kind, GRIDS[0])])
        pictures = new_pictures(kind)
        measure(peer, [about(peer, next(pictures))])
        chats = [about(peer, next(pictures)) for _ in range(samples)]
        yield row(f"new {kind.name}", [measure(peer, [each]) for each in chats], fault)
        if kind not in JPEGS:
            continue
        known = misdescribed(peer, GRIDS[:1], [grid_picture(kind, GRIDS[0])])
        yield row(f"known {kind.name}", [measure(peer, [chats[0]]) for _ in range(samples)], known)
        eights = [[about(peer, next(pictures)) for _ in range(8)] for _ in range(max(samples // 2, 1))]
        yield row(f"eight new {kind.name}s at once", [measure(peer, eight) for eight in eights], _mixed_up(peer, kind))
        yield _by_url(peer, kind, samples)


def chats(peer: Peer, samples: int) -> Iterator[Row]:
    """Yield the rows of requests with several images: turns of a chat, and ten images at once."""
    fault = misdescribed(peer, GRIDS, [grid_picture(MEDIUM, grid) for grid in GRIDS])
    second, eight = [], []
    pictures = new_pictures(MEDIUM)
    for _ in range(samples):
        turns = list(_turns(peer, [next(pictures) for _ in range(CHAT_IMAGES)]))
        second.append(turns[1])
        wrong = next((turn.fault for turn in turns if turn.fault), "")
        eight.append(Sample(sum(turn.ms for turn in turns), sum(turn.cpu_ms for turn in turns), wrong))
    yield row(f"second turn of a chat with {CHAT_IMAGES} images of 2 MP", second, fault)
    yield row(f"{TURNS} turns of a chat with {CHAT_IMAGES} images of 2 MP", eight, fault)
    tens = [about(peer, *itertools.islice(pictures, MANY)) for _ in range(max(samples // 2, 1))]
    yield row("ten new 2 MP JPEGs in one request", [measure(peer, [ten]) for ten in tens])


def memory_after_new_images(peer: Peer, count: int) -> tuple[int, int]:
    """Return the front end's resident bytes after 20 new images and after `count`."""
    pictures = new_pictures(Kind("0.3 MP JPEG", (512, 512)))
    before = 0
    for number in range(count):
        measure(peer, [about(peer, next(pictures))])
        if number == 20:
            before = peer.rss()
    return before, peer.rss()


def _mixed_up(peer: Peer, kind: Kind) -> str:
    """Ask about all grids at the same time, one in each request. Return a sentence about a wrong answer, or nothing."""
    with ThreadPoolExecutor(len(GRIDS)) as pool:
        faults = list(pool.map(lambda grid: misdescribed(peer, [grid], [grid_picture(kind, grid)]), GRIDS))
    return next(filter(None, faults), "")


def _turns(peer: Peer, urls: list[str]) -> Iterator[Sample]:
    """Send the turns of a chat one after the other, each with the turns before it. The images are in the first message."""
    messages = [user("Describe these images.", *urls)]
    for _ in range(TURNS):
        yield measure(peer, [chat(peer, messages)])
        messages += [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And the top right?"}]


def _by_url(peer: Peer, kind: Kind, samples: int) -> Row:
    pictures = new_pictures(kind)
    with picture_host() as host:
        fault = misdescribed(peer, GRIDS[1:2], [host.url(grid_picture(kind, GRIDS[1]))])
        chats = [about(peer, host.url(next(pictures))) for _ in range(samples)]
        return row(f"new {kind.name} by URL", [measure(peer, [each]) for each in chats], fault)
