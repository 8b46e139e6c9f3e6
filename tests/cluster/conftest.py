"""One real Ray cluster for the whole run: the demo model behind two ingress replicas, as deploy/ray/demo.yaml has it; later more models."""

import asyncio
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import local_cluster
from cluster.local_cluster import DEPLOY_TIMEOUT, Cluster
from cluster.talk import Told, ask, client
from helpers import lora
from helpers.requests import MODEL, body, image
from helpers.waiting import wait_for
from httpx import AsyncClient

from llava_gateway.demo.images import describe, random_grid

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "demo.yaml"
PER_MINUTE = 20
PLAIN, PLAIN_DEPLOYMENT = "plain", "plain-1"
"""The second model, which has no affinity, and what Ray calls it."""
AT_ONCE = 6
LONG = 400
"""Tokens."""
AFTERWARDS = 3
"""Seconds for which the load goes on when all is new."""


def demo_application() -> dict[str, Any]:
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    return dict(application)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two engine replicas and two ingress replicas, ready."""
    with local_cluster.started() as started:
        started.deploy(demo_application())
        wait_for(started.is_deployed, DEPLOY_TIMEOUT, started.log)
        yield started


@dataclass(frozen=True)
class Grown:
    """The cluster after it was deployed anew."""

    cluster: Cluster
    keys: dict[str, str]
    meanwhile: list[tuple[Told, str]]
    """What requests got while that went on, and what they should have got, some of them with more after it."""


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real one; `memory` where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield "memory"
        return
    (port,) = local_cluster.free_ports(1)
    flags = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path_factory.mktemp("redis")))
    process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 20)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def grown(cluster: Cluster, redis: str, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Deployed anew, while requests go on, with other engine flags, with keys, and with a second model that has an adapter and scales."""
    folder = tmp_path_factory.mktemp("grown")
    lora.train(folder / "corner")
    keys = {"alice": _new_key(folder, "alice"), "dave": _new_key(folder, "dave", "--requests-per-minute", str(PER_MINUTE))}
    application = demo_application()
    arguments = application["args"]
    arguments["settings"] = {"keys_file": str(folder / "keys.json"), "rate_limit_storage": redis}
    arguments["models"][0] |= {"engine_flags": ["--max-num-seqs", "32"], "model_alias": "demo"}
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 15}
    scaling |= {"metrics_interval_s": 1, "look_back_period_s": 2}
    plain = {"model": MODEL, "served_model_name": PLAIN, "affinity": False, "lora_modules": f"corner={folder / 'corner'}"}
    plain["deployment"] = {"autoscaling_config": scaling, "ray_actor_options": {"num_cpus": 0.2}}
    arguments["models"].append(plain)
    before = {process.pid for name in (MODEL, "ingress") for process in cluster.replicas(name)}

    def is_new() -> bool:
        deployments = cluster.applications()["llava"]["deployments"]
        pids = {replica.get("pid") for deployment in deployments.values() for replica in deployment["replicas"]}
        return PLAIN_DEPLOYMENT in deployments and not pids & before and cluster.is_deployed()

    async def deploy() -> list[tuple[Told, str]]:
        meanwhile: list[tuple[Told, str]] = []
        async with client(cluster.url, keys["alice"]) as http:
            enough = asyncio.Event()
            askers = [asyncio.create_task(_keep_asking(http, number, meanwhile, enough)) for number in range(AT_ONCE)]
            try:
                cluster.deploy(application)
                await asyncio.to_thread(wait_for, is_new, DEPLOY_TIMEOUT, cluster.log)
                await asyncio.sleep(AFTERWARDS)
            finally:
                enough.set()
                await asyncio.gather(*askers)
        return meanwhile

    return Grown(cluster, keys, asyncio.run(deploy()))


async def _keep_asking(http: AsyncClient, number: int, meanwhile: list[tuple[Told, str]], enough: asyncio.Event) -> None:
    """About images; the first of all only wants to hear a long answer, each of which takes seconds."""
    rng = random.Random(number)
    while not enough.is_set():
        grid = random_grid(rng)
        if number:
            asked = body(image(grid), "Describe this image.", stream=rng.random() < 0.5)
        else:
            asked = body(image(grid), "Describe this image.", stream=True, ignore_eos=True, max_tokens=LONG)
        meanwhile.append((await ask(http, asked), describe([grid])))


def _new_key(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "llava_gateway", "keys", "new", *arguments, "--file", "keys.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
