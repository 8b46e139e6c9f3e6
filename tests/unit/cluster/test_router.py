"""The statements of docs/scaling.md on routing hold in a small simulation, which uses the cluster's own functions."""

import pytest
from bench.routing_cluster import Cluster, Routing, bounded, by_chance, less_of_two, unbounded
from bench.routing_model import HEARD, Images, Seen, Users, View

from llava_gateway.cluster.router import ranked

pytestmark = pytest.mark.slow

EVERYTHING = 1_000_000
"""A cache for so many images holds all images of the simulation."""
SHORT = Users(turns=2, hot=0)
"""Chats of one to three turns, each with images of its own."""
CROWD = Users(hot=0.7, images=3)
"""Many chats about the same three images."""


def seen(replicas: int, routing: Routing, users: Users, kv: int = EVERYTHING, seconds: float = 120) -> Seen:
    cluster = Cluster(replicas, routing, users, kv=kv)
    cluster.run(60)
    return cluster.run(seconds)


@pytest.mark.parametrize("routing", [by_chance, less_of_two])
def test_two_replicas_without_affinity_find_half_of_the_images(routing: Routing) -> None:
    """A second turn finds its images with probability 1/2, a third turn with 3/4. Of three chats two have a second turn, one a third."""
    assert seen(2, routing, SHORT).kv == pytest.approx((2 * 0.5 + 0.75) / 3, abs=0.06)


def test_two_replicas_with_affinity_find_the_images_of_their_chats() -> None:
    assert seen(2, bounded, SHORT).kv >= 0.9


def test_affinity_finds_as_many_images_with_many_replicas() -> None:
    with_it, without = seen(16, bounded, SHORT, seconds=30), seen(16, less_of_two, SHORT, seconds=30)
    assert with_it.kv >= 0.9
    assert without.kv <= 0.2


def test_bound_keeps_one_popular_image_from_overloading_a_replica() -> None:
    with_it, without = seen(8, bounded, CROWD, seconds=40), seen(8, unbounded, CROWD, seconds=40)
    assert with_it.excess <= 0  # with this request it is at most 1
    assert without.excess > 20
    assert with_it.imbalance < 1.7 < without.imbalance
    assert with_it.wait(99) < without.wait(99)


def test_affinity_finds_few_images_if_the_cache_is_too_small() -> None:
    users = Users(hot=0)
    assert seen(2, bounded, users, kv=400).kv > 0.9
    assert seen(2, bounded, users, kv=40).kv < 0.4


@pytest.mark.parametrize("replicas", [2, 8])
def test_new_replica_takes_its_share_of_keys_and_no_other_key_moves(replicas: int) -> None:
    before = [f"replica-{number}" for number in range(replicas)]
    after = [*before, "new"]
    keys = [f"image-{number}" for number in range(4000)]
    moved = [key for key in keys if ranked(key, before)[0] != ranked(key, after)[0]]
    assert len(moved) / len(keys) == pytest.approx(1 / len(after), rel=0.15)
    assert {ranked(key, after)[0] for key in moved} == {"new"}


def test_death_of_a_replica_costs_only_its_share_of_hits() -> None:
    cluster = Cluster(8, bounded, Users(hot=0), kv=EVERYTHING)
    cluster.run(60)
    before = cluster.run(30)
    cluster.kill(cluster.names[0])
    after, later = cluster.run(10), cluster.run(30)
    assert before.kv > 0.95
    assert before.kv - 0.3 < after.kv < before.kv - 0.05
    assert later.kv > after.kv + 0.03


def test_requests_of_a_dead_replica_go_to_others() -> None:
    cluster = Cluster(4, bounded)
    cluster.run(30)
    asked = sum(cluster.loads())
    cluster.kill(cluster.names[0])
    assert sum(cluster.loads()) < asked
    cluster.run(0)
    assert sum(cluster.loads()) == asked


def test_new_replica_gets_its_share_of_requests() -> None:
    cluster = Cluster(3, bounded)
    cluster.run(60)
    name = cluster.add()
    cluster.run(60)
    loads = dict(zip(cluster.names, cluster.loads(), strict=True))
    assert loads[name] > sum(loads.values()) / len(loads) / 3


def test_cache_drops_the_image_that_was_used_longest_ago() -> None:
    images = Images(2)
    assert [images.use(image) for image in (1, 2, 1, 3, 1, 2)] == [False, False, True, False, True, False]


def test_load_counts_as_unknown_after_a_while() -> None:
    view = View()
    assert view.load("a", now=5) is None
    view.hear("a", 7, now=5)
    assert view.load("a", now=5 + HEARD) == 7
    assert view.load("a", now=6 + HEARD) is None
