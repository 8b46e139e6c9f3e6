"""Which replica a request goes to: the one that has its images, unless that one has too much to do. Pure, and without a memory: every
ingress comes to the same choice by itself."""

from collections.abc import Callable, Sequence

from blake3 import blake3

FACTOR = 1.25
SPARE = 4
"""A replica has too much to do when it has more requests than `FACTOR` times what all have on average, and `SPARE`."""


def ranked(key: str, replicas: Sequence[str]) -> list[str]:
    """All replicas, the one that this key belongs to first. One that comes or goes takes no key along but its own (rendezvous hashing,
    Thaler and Ravishankar 1998)."""
    return sorted(replicas, key=lambda replica: blake3(f"{key}/{replica}".encode()).digest(), reverse=True)


def within_bounds(replicas: Sequence[str], load: Callable[[str], int | None]) -> list[str]:
    """Those that have not too much to do, in the order given: never none of them (consistent hashing with bounded loads, Mirrokni et al.
    2018). `load`: requests that a replica has; None if that is not known, which is taken for the average."""
    loads = [load(replica) for replica in replicas]
    known = [each for each in loads if each is not None]
    bound = FACTOR * sum(known) / len(known) + SPARE if known else 0.0
    return [replica for replica, its in zip(replicas, loads, strict=True) if its is None or its <= bound]
