"""`make soak`: mixed traffic for ten minutes, with images, clients that leave and bad input. Every interval all stop, and what the
gateway then holds is read: memory, open files, tasks, requests. Fails if any of it grows after the warm-up.

With `--hostile` the traffic is polite chats alone, and in every second interval attackers join them from an address of their own. Fails
also if that more than doubles the polite clients' time to the first token (its 99th percentile), or if one of them is not answered.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from helpers.attacks import KINDS, Attacks
from helpers.hostile_origin import hostile_origin
from helpers.origin import Origin
from helpers.requests import body, image, image_part
from helpers.server import Server, serve

from llava_gateway.demo.images import COLORS, Grid, data_uri, describe, draw, encode

CHAT = "/v1/chat/completions"
WORKERS = 8
POLITE, ATTACKERS = 2, 4
"""Workers of `--hostile`."""
WARM_UP = 0.4
"""Part of the run after which nothing may grow."""
BOUNDS = {"gateway_mb": 20.0, "engine_mb": 20.0, "files": 4.0, "tasks": 4.0, "inside": 0.0}
"""How much more the second half of what follows the warm-up may hold than the first, by the medians."""
FLAGS = (
    *("--allow-networks", "127.0.0.0/8", "--image-timeout", "2", "--body-timeout", "2", "--max-num-seqs", "32"),
    *("--image-cache-mb", "16", "--mm-processor-cache-gb", "0.02"),
)
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
"""Caches so small that they are full before the warm-up ends; oneDNN's keeps code for the last 1,024 shapes of matrices otherwise."""


def random_grid(rng: random.Random) -> Grid:
    first, second, third, fourth = (rng.choice(list(COLORS)) for _ in range(4))
    return first, second, third, fourth


@dataclass
class Traffic:
    server: Server
    origin: Origin
    outcomes: Counter[str]

    def one(self, rng: random.Random, http: httpx.Client) -> None:
        kind = rng.choice(("text", "picture", "picture", "chat", "stream", "url", "leave", "bad", "form", "damaged"))
        status = getattr(self, f"_{kind}")(rng, http)
        self.outcomes[f"{kind} {status}"] += 1

    def _ask(self, http: httpx.Client, **fields: Any) -> int:
        return http.post(CHAT, json=body("Hello", max_tokens=20) | fields).status_code

    def _text(self, rng: random.Random, http: httpx.Client) -> int:
        return self._ask(http, seed=rng.randrange(1000), temperature=1)

    def _picture(self, rng: random.Random, http: httpx.Client) -> int:
        grid = random_grid(rng)
        answer = http.post(CHAT, json=body(image(grid), "Describe this image."))
        assert answer.json()["choices"][0]["message"]["content"] == describe([grid]), answer.text
        return answer.status_code

    def _chat(self, rng: random.Random, http: httpx.Client) -> int:
        return self._ask(http, messages=body(*[image(("red", "blue", color, "white")) for color in list(COLORS)[:3]], "Hello")["messages"])

    def _stream(self, rng: random.Random, http: httpx.Client) -> int:
        return self._ask(http, stream=True, n=2, temperature=1, logprobs=True, top_logprobs=3, max_tokens=60, ignore_eos=True)

    def _url(self, rng: random.Random, http: httpx.Client) -> int:
        path = rng.choice(("/picture", "/cached", "/missing", "/text", "/lies", "/short", "/slow", "/drip", "/to-private"))
        return self._ask(http, messages=body(image_part(self.origin.url + path), "Hello")["messages"])

    def _leave(self, rng: random.Random, http: httpx.Client) -> int:
        stream, leaves = rng.random() < 0.5, time.monotonic() + rng.random()
        asked = body(image(("black", "white", "red", "blue")), "Hello", max_tokens=2000, ignore_eos=True, stream=stream)
        patience = max(leaves - time.monotonic(), 0.01)
        with contextlib.suppress(httpx.TimeoutException), http.stream("POST", CHAT, json=asked, timeout=patience) as answer:
            for _ in answer.iter_bytes():
                if time.monotonic() > leaves:
                    break
        return 0

    def _bad(self, rng: random.Random, http: httpx.Client) -> int:
        return http.post(
            CHAT, content=rng.choice((b"", b"{", b"[" * 5000, json.dumps(body("x", seed="y")).encode(), bytes(100_000)))
        ).status_code

    def _form(self, rng: random.Random, http: httpx.Client) -> int:
        return self._ask(http, structured_outputs={"choice": ["yes", "no", str(rng.randrange(50))]})

    def _damaged(self, rng: random.Random, http: httpx.Client) -> int:
        data = bytearray(encode(draw(("red", "blue", "green", "white")), rng.choice(("PNG", "JPEG"))))
        data[rng.randrange(len(data))] ^= 0xFF
        return self._ask(http, messages=body(image_part(data_uri(bytes(data))), "Hello")["messages"])


class PoliteTraffic:
    """Short streamed chats about images that the server has not seen, with a pause after each."""

    def __init__(self, outcomes: Counter[str]) -> None:
        self.outcomes = outcomes
        self.first_tokens: list[float] = []
        """Seconds of each chat to its first token."""

    def one(self, rng: random.Random, http: httpx.Client) -> None:
        grid = random_grid(rng)
        asked = body(image(grid), "Describe this image.", stream=True, max_tokens=30)
        start, said = time.monotonic(), ""
        with http.stream("POST", CHAT, json=asked) as answer:
            for line in answer.iter_lines():
                if line.startswith('data: {"id"'):
                    if not said:
                        self.first_tokens.append(time.monotonic() - start)
                    said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        assert answer.status_code != 200 or describe([grid]).startswith(said), said
        self.outcomes[f"polite {answer.status_code}"] += 1
        time.sleep(rng.random() * 0.2)


class HostileTraffic:
    def __init__(self, attacks: Attacks, kinds: list[str]) -> None:
        self.attacks = attacks
        self.kinds = kinds
        self.outcomes: Counter[str] = Counter()

    def one(self, rng: random.Random, http: httpx.Client) -> None:
        kind = rng.choice(self.kinds)
        self.outcomes[f"attack:{kind} {self.attacks.run(kind, rng)}"] += 1


class Crew:
    """Workers that can be made to stop for a moment."""

    def __init__(self, url: str, traffic: Traffic | PoliteTraffic | HostileTraffic, workers: int) -> None:
        self._url = url
        self._traffic = traffic
        self._workers = workers
        self._go = threading.Event()
        self._over = False
        self._busy = threading.Semaphore(workers)
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def work(self, seconds: float) -> None:
        """All work for so long, and have finished when this returns."""
        self.start()
        time.sleep(seconds)
        self.finish()

    def start(self) -> None:
        self._go.set()

    def finish(self) -> None:
        self._go.clear()
        for _ in range(self._workers):
            if not self._busy.acquire(timeout=60):
                self.failures.append(TimeoutError("a request has hung for a minute"))
        self._busy.release(self._workers)

    def end(self) -> None:
        self._over = True
        self._go.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=self._url, timeout=60) as http:
            while True:
                self._go.wait()
                if self._over:
                    return
                with self._busy:
                    try:
                        self._traffic.one(rng, http)
                    except BaseException as failure:  # told at the end
                        self.failures.append(failure)


def sample(server: Server) -> dict[str, float]:
    process = psutil.Process(server.process.pid)
    children = process.children(recursive=True)
    metrics = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line[:1] != "#")
    return {
        "gateway_mb": process.memory_info().rss / (1 << 20),
        "engine_mb": sum(child.memory_info().rss for child in children) / (1 << 20),
        "files": sum(member.num_fds() for member in (process, *children)),
        "tasks": float(metrics["llava_tasks"]),
        "inside": float(metrics["llava_requests_inside"]),
    }


def trends(samples: list[dict[str, float]]) -> dict[str, float]:
    """How much more the second half of what follows the warm-up holds than the first."""
    steady = samples[int(len(samples) * WARM_UP) :]
    half = len(steady) // 2
    return {name: median(each[name] for each in steady[half:]) - median(each[name] for each in steady[:half]) for name in BOUNDS}


class Attackers:
    """A crew in a process of its own, whose CPU time is not the polite clients'."""

    def __init__(self, url: str, origin_url: str, kinds: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=attack, args=(theirs, url, origin_url, kinds))
        self._process.start()

    def start(self) -> None:
        self._connection.send("start")

    def finish(self) -> None:
        self._connection.send("finish")
        assert self._connection.poll(120), "the attackers hang"
        self._connection.recv()

    def end(self) -> Counter[str]:
        """What came of the attacks."""
        self._connection.send("end")
        outcomes: Counter[str] = self._connection.recv()
        self._process.join(60)
        return outcomes


def attack(connection: Connection, url: str, origin_url: str, kinds: list[str]) -> None:
    os.nice(10)  # attackers have machines of their own
    traffic = HostileTraffic(Attacks(url, origin_url), kinds)
    crew = Crew(url, traffic, ATTACKERS)
    while (command := connection.recv()) != "end":
        if command == "start":
            crew.start()
        else:
            crew.finish()
            connection.send(command)
    crew.end()
    connection.send(traffic.outcomes)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def soak(server: Server, origin: Origin, options: argparse.Namespace, outcomes: Counter[str]) -> tuple[list[dict[str, float]], list[str]]:
    """Samples of what the gateway holds, and faults."""
    crew = Crew(server.url, Traffic(server, origin, outcomes), WORKERS)
    samples: list[dict[str, float]] = []
    for seconds in intervals(options):
        crew.work(options.interval)
        take_sample(server, samples, seconds(), outcomes)
    crew.end()
    return samples, told(crew)


def besiege(server: Server, options: argparse.Namespace, outcomes: Counter[str]) -> tuple[list[dict[str, float]], list[str]]:
    """As `soak`, with attackers in every second interval."""
    polite = PoliteTraffic(outcomes)
    first_tokens: dict[bool, list[float]] = {False: [], True: []}
    samples: list[dict[str, float]] = []
    with hostile_origin() as origin_url:
        crew = Crew(server.url, polite, POLITE)
        attackers = Attackers(server.url, origin_url, options.attacks)
        crew.work(options.interval)  # the first images of all find caches and workers cold
        for number, seconds in enumerate(intervals(options)):
            attacked = number % 2 == 1
            polite.first_tokens.clear()
            if attacked:
                attackers.start()
            crew.work(options.interval)
            if attacked:
                attackers.finish()
            first_tokens[attacked] += polite.first_tokens
            take_sample(server, samples, seconds(), outcomes)
        crew.end()
        outcomes += attackers.end()
    faults = told(crew)
    refused = {outcome for outcome in outcomes if outcome.startswith("polite") and outcome != "polite 200"}
    faults += [f"{outcomes[outcome]} chats were answered {outcome}" for outcome in refused]
    for part in (0.5, 0.99):
        quiet, besieged = (percentile(first_tokens[attacked], part) * 1000 for attacked in (False, True))
        row = f"first token p{part * 100:g}: {quiet:.0f} ms in peace, {besieged:.0f} ms under attack, {besieged / quiet:.2f}"
        print(row)
        faults += [row] * (part == 0.99 and besieged > 2 * quiet)
    return samples, faults


def intervals(options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """For each interval until the minutes are over: a clock of the run."""
    start = time.monotonic()
    while time.monotonic() - start < options.minutes * 60:
        yield lambda: time.monotonic() - start


def take_sample(server: Server, samples: list[dict[str, float]], seconds: float, outcomes: Counter[str]) -> None:
    time.sleep(1)
    samples.append(sample(server))
    print(f"{seconds:8.0f} {outcomes.total():9}", *(f"{value:10.0f}" for value in samples[-1].values()), flush=True)


def told(crew: Crew) -> list[str]:
    return [f"a request failed: {failure!r}" for failure in crew.failures[:5]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--interval", type=float, default=15, help="seconds between two samples")
    parser.add_argument("--hostile", action="store_true", help="attackers beside polite clients in every second interval")
    parser.add_argument(
        "--attacks", type=lambda names: names.split(","), default=KINDS, help="with --hostile: these alone, comma separated"
    )
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    os.environ |= ENVIRONMENT
    with tempfile.TemporaryDirectory() as folder, Origin() as origin, serve(Path(folder), *FLAGS) as server:
        threading.Thread(target=origin.serve_forever, daemon=True).start()
        print(f"{'seconds':>8} {'requests':>9}", *(f"{name:>10}" for name in BOUNDS))
        samples, faults = besiege(server, options, outcomes) if options.hostile else soak(server, origin, options, outcomes)
        origin.shutdown()
        log = server.log.read_text()
    print("\n".join(f"{count:6} {outcome}" for outcome, count in sorted(outcomes.items())))
    grown = {name: growth for name, growth in trends(samples).items() if growth > BOUNDS[name]}
    faults += [f"{name} grows by {growth:.0f}" for name, growth in grown.items()]
    faults += [f"{count} requests were answered {outcome}" for outcome, count in outcomes.items() if outcome.split()[-1][0] == "5"]
    faults += ["there is a traceback in the log"] * ("Traceback" in log)
    print("\n".join(faults) or "nothing grows")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
