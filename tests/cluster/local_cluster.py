"""A Ray cluster of its own on this machine, on ports of its own, with what `ray start` and `serve deploy` make of a config file.

Its nodes have the environment of deploy/ray/rayservice.yaml; what is set where the tests run stands in for it: with
RAY_SERVE_ENABLE_HA_PROXY=0 and RAY_SERVE_ENABLE_DIRECT_INGRESS=0 Ray Serve's own proxy is in front.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from helpers.processes import descendants
from helpers.waiting import wait_for
from prometheus_client.parser import text_string_to_metric_families

BIN = Path(sys.executable).parent
RAY_SERVICE = Path(__file__).parents[2] / "deploy" / "ray" / "rayservice.yaml"
CPUS = 2
"""That Ray may give away, whatever the machine has."""
OBJECT_STORE = 256 << 20
START_TIMEOUT = 60
DEPLOY_TIMEOUT = 240
HEALTHY, RUNNING = "HEALTHY", "RUNNING"


@dataclass(frozen=True)
class Cluster:
    folder: Path
    """Short, since Ray puts sockets there, whose paths may have 107 bytes."""
    port: int
    dashboard: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, *applications: dict[str, Any]) -> None:
        """As `serve deploy` does it. Returns at once."""
        config = {"http_options": {"host": "127.0.0.1", "port": self.port}, "applications": applications}
        answer = self.dashboard.put("/api/serve/applications/", json=config)
        assert answer.status_code == 200, answer.text

    def applications(self) -> dict[str, Any]:
        answer = self.dashboard.get("/api/serve/applications/")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["applications"])

    def is_deployed(self) -> bool:
        """All as it was asked for last, and nothing on its way."""
        applications = self.applications().values()
        for application in applications:
            assert application["status"] != "DEPLOY_FAILED", self.log()
        return all(
            application["status"] == RUNNING and all(each["status"] == HEALTHY for each in application["deployments"].values())
            for application in applications
        )

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Those that take requests."""
        (found,) = (each for app in self.applications().values() for name, each in app["deployments"].items() if name == deployment)
        processes = []
        for replica in found["replicas"]:
            if replica["state"] == RUNNING:
                with contextlib.suppress(psutil.NoSuchProcess):  # dead, which Ray does not know yet
                    processes.append(psutil.Process(replica["pid"]))
        return processes

    def busiest(self, deployment: str) -> psutil.Process:
        """The replica whose engine works on most requests."""
        (found,) = (each for app in self.applications().values() for name, each in app["deployments"].items() if name == deployment)
        running = self.metric("vllm:num_requests_running", deployment=deployment)
        replica = max(found["replicas"], key=lambda replica: running.get(replica["replica_id"], -1))
        assert running[replica["replica_id"]] > 0
        return psutil.Process(replica["pid"])

    def metric(self, name: str, key: str = "", **labels: str) -> dict[str, float]:
        """By replica: the sum of those with these labels."""
        page = httpx.get(f"{self.url}/metrics", headers={"key": key} if key else {}, timeout=30).text
        found: dict[str, float] = {}
        for sample in (sample for family in text_string_to_metric_families(page) for sample in family.samples if sample.name == name):
            if labels.items() <= sample.labels.items():
                found[sample.labels["replica"]] = found.get(sample.labels["replica"], 0) + sample.value
        return found

    def log(self) -> str:
        """What went wrong, in Ray's words and the processes' own."""
        said = json.dumps(self.applications(), indent=1)
        logs = sorted(self.folder.glob("session_latest/logs/**/*.err"), key=lambda path: path.stat().st_mtime)
        return said + "".join(f"\n{path}:\n{path.read_text()[-2000:]}" for path in logs[-8:])


@contextmanager
def started() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    ports = free_ports(9)
    environment = _environment()
    flags = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
             "metrics-export-port", "node-manager-port", "object-manager-port")  # fmt: skip
    command: list[str | Path] = [
        *(BIN / "ray", "start", "--head", "--block", f"--temp-dir={folder}", f"--num-cpus={CPUS}"),
        *("--num-gpus=0", f"--object-store-memory={OBJECT_STORE}", "--include-log-monitor=false"),
        *(f"--{flag}={port}" for flag, port in zip(flags, ports, strict=False)),
    ]
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    headers = {"authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{ports[1]}", headers=headers, timeout=30) as dashboard:
            cluster = Cluster(folder, ports[-1], dashboard)
            wait_for(lambda: _answers(dashboard), START_TIMEOUT, lambda: (folder / "ray.log").read_text())
            yield cluster
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    service = next(yaml.safe_load_all(RAY_SERVICE.read_text()))
    (container,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    shipped = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    shipped["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(BIN / Path(shipped["RAY_SERVE_HAPROXY_BINARY_PATH"]).name)
    names = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    own["RAY_worker_niceness"] = "0"  # else replicas, the proxy too, get next to nothing of cores that others use
    return shipped | ports | os.environ | own


def engine_of(replica: psutil.Process) -> psutil.Process:
    """vLLM's own process of this replica."""
    found: list[psutil.Process] = []

    def look() -> list[psutil.Process]:
        found[:] = descendants(replica.pid, "EngineCore")
        return found

    wait_for(look, 10, lambda: f"{replica}: {replica.children(recursive=True)}")
    (engine,) = found
    return engine


def _answers(dashboard: httpx.Client) -> bool:
    try:
        return dashboard.get("/api/serve/applications/").status_code == 200
    except httpx.TransportError:
        return False


def free_ports(number: int) -> list[int]:
    """Each another one."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ray's processes, the replicas and their engines: all are of the session that `ray start` leads, and have nothing to save."""
    while session := [each for each in _of_session(process.pid) if each.status() != psutil.STATUS_ZOMBIE]:
        for each in session:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(session, timeout=5)


def _of_session(leader: int) -> list[psutil.Process]:
    processes = []
    for each in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(each.pid) == leader:
                processes.append(each)
    return processes
