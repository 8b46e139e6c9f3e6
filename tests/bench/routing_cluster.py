"""The simulated cluster: chats with images, the ingresses that route them, and replicas that each remember some images."""

import heapq
import itertools
import math
import random
from collections.abc import Callable

from bench.routing_model import (
    ANSWER,
    ANSWER_SECONDS,
    ANSWERS_AT_MOST,
    KV_IMAGES,
    PREFILL,
    PREPARED_IMAGES,
    PROCESS,
    SEATS,
    TEXT,
    Chat,
    Images,
    Replica,
    Seen,
    Users,
    View,
)

from llava_gateway.cluster import router as affinity

Load = Callable[[str], int | None]
Routing = Callable[["Cluster", int, Load], str]


def by_chance(cluster: "Cluster", key: int, load: Load) -> str:
    return cluster.random.choice(cluster.names)


def less_of_two(cluster: "Cluster", key: int, load: Load) -> str:
    """The power of two choices: Ray Serve's own routing."""
    return min(cluster.random.sample(cluster.names, min(2, len(cluster.names))), key=lambda name: load(name) or 0)


def unbounded(cluster: "Cluster", key: int, load: Load) -> str:
    return cluster.ranked(key)[0]


def bounded(cluster: "Cluster", key: int, load: Load) -> str:
    """The gateway's."""
    return affinity.within_bounds(cluster.ranked(key), load)[0]


ROUTINGS: dict[str, Routing] = {"random": by_chance, "less of two": less_of_two, "affinity, unbounded": unbounded, "affinity": bounded}


class Cluster:
    """Users, ingresses and replicas on one clock. `ingresses`: how many there are, each with a view of its own; 0: the load is known."""

    def __init__(
        self,
        replicas: int,
        routing: Routing,
        users: Users | None = None,
        *,
        kv: int = KV_IMAGES,
        prepared: int = PREPARED_IMAGES,
        ingresses: int = 0,
        seed: int = 1,
    ) -> None:
        self.random = random.Random(seed)
        self.users, self.now, self.seen = users or Users(), 0.0, Seen()
        self._routing, self._room = routing, (kv, prepared)
        self._replicas: dict[str, Replica] = {}
        self._views = [View() for _ in range(ingresses)]
        self._rate = self.users.rate * replicas / self.users.turns
        self._known, self._numbers, self._images = set[int](), itertools.count(), itertools.count(self.users.images)
        self._popular = list(itertools.accumulate(1 / n for n in range(1, self.users.images + 1)))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for _ in range(replicas):
            self.add()
        self._after(0, self._begin)

    def add(self) -> str:
        """A replica that remembers nothing. Returns its name."""
        name = f"replica-{next(self._numbers)}"
        self._replicas[name] = Replica(name, Images(self._room[0]), Images(self._room[1]), free=self.now, since=self.now)
        self._changed()
        return name

    def kill(self, name: str) -> None:
        """What it was asked is asked again at once."""
        for chat in self._replicas.pop(name).chats.values():
            self._after(0, lambda chat=chat: self._ask(chat))  # type: ignore[misc]
        self._changed()

    def _changed(self) -> None:
        self.names = list(self._replicas)
        self._order: dict[int, list[str]] = {}

    def ranked(self, key: int) -> list[str]:
        if key not in self._order:
            self._order[key] = affinity.ranked(str(key), self.names)
        return self._order[key]

    def loads(self) -> list[int]:
        return [len(replica.chats) for replica in self._replicas.values()]

    def run(self, seconds: float) -> Seen:
        """What was seen in them."""
        self.seen, end = Seen(), self.now + seconds
        for replica in self._replicas.values():
            replica.area, replica.since = 0.0, self.now
        while self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = end
        areas = [self._count(replica) for replica in self._replicas.values()]
        self.seen.imbalance = max(areas) * len(areas) / (sum(areas) or math.nan)
        return self.seen

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def _count(self, replica: Replica) -> float:
        replica.area += len(replica.chats) * (self.now - replica.since)
        replica.since = self.now
        return replica.area

    def _begin(self) -> None:
        users, chance = self.users, self.random
        popular = chance.choices(range(users.images), cum_weights=self._popular)[0]
        first = popular if chance.random() < users.hot else next(self._images)
        images = [first, next(self._images)] if chance.random() < users.second else [first]
        self._ask(Chat(images, chance.randint(1, 2 * users.turns - 1)))
        self._after(chance.expovariate(self._rate), self._begin)

    def _ask(self, chat: Chat) -> None:
        chat.ingress = self.random.randrange(max(len(self._views), 1))
        name = self._routing(self, chat.images[0], self._load(chat.ingress))
        replica, loads = self._replicas[name], self.loads()
        bound = affinity.FACTOR * sum(loads) / len(loads) + affinity.SPARE
        self.seen.excess = max(self.seen.excess, len(replica.chats) - bound)
        self._count(replica)
        number = next(self._numbers)
        replica.chats[number] = chat
        if self._views:
            self._views[chat.ingress].hear(name, len(replica.chats), self.now)
        replica.waiting.append((number, self.now))
        self._seat(replica)

    def _load(self, ingress: int) -> Load:
        if self._views:
            return lambda name: self._views[ingress].load(name, self.now)
        return lambda name: len(self._replicas[name].chats)

    def _seat(self, replica: Replica) -> None:
        while replica.waiting and replica.seated < SEATS:
            number, asked = replica.waiting.popleft()
            replica.seated += 1
            work = TEXT + sum(self._look(replica, image) for image in replica.chats[number].images)
            left = 1 - min(ANSWERS_AT_MOST, replica.answering * ANSWER / ANSWER_SECONDS)
            replica.free = max(replica.free, self.now) + work / left
            self.seen.waits.append(replica.free - asked)
            self._after(replica.free - self.now, lambda number=number: self._first(replica, number))  # type: ignore[misc]

    def _look(self, replica: Replica, image: int) -> float:
        """Seconds until its tokens are in the KV cache."""
        kv, prepared = replica.kv.use(image), replica.prepared.use(image)
        if image in self._known:
            self.seen.again += 1
            self.seen.kv_hits += kv
            self.seen.prepared_hits += kv or prepared
        self._known.add(image)
        return 0.0 if kv else PREFILL if prepared else PREFILL + PROCESS

    def _first(self, replica: Replica, number: int) -> None:
        replica.answering += 1
        crowd = replica.answering * ANSWER / ANSWER_SECONDS / ANSWERS_AT_MOST
        self._after(ANSWER_SECONDS * max(1.0, crowd), lambda: self._last(replica, number))

    def _last(self, replica: Replica, number: int) -> None:
        if replica.name not in self._replicas:
            return
        self._count(replica)
        chat = replica.chats.pop(number)
        replica.answering -= 1
        replica.seated -= 1
        if self._views:
            view = self._views[chat.ingress]
            view.hear(replica.name, max((view.load(replica.name, self.now) or 0) - 1, 0), self.now)
        self._seat(replica)
        chat.turns -= 1
        if chat.turns:
            if self.random.random() < self.users.more:
                chat.images.append(next(self._images))
            self._after(self.random.expovariate(1 / self.users.think), lambda: self._ask(chat))
