"""The Dockerfile, the Compose files and the systemd unit, checked by their own tools."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import programs
from helpers.deployment import DEPLOY, DOCKERFILE, dockerfile
from helpers.server import ROOT

from llava_gateway.cli.serve import ERROR_SEND_TIMEOUT
from llava_gateway.engine.vllm.engine import STOP_TIMEOUT
from llava_gateway.settings import Settings

UNIT = DEPLOY / "systemd" / "llava-gateway.service"
NEEDED = Settings().shutdown_timeout + ERROR_SEND_TIMEOUT + STOP_TIMEOUT
"""Seconds that a gateway may take to end, with its defaults."""


def test_dockerfile_passes_hadolint() -> None:
    programs.run("hadolint", DOCKERFILE)


def test_image_is_built_from_existing_files() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [source for line in dockerfile("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert {"llava_gateway", "deploy/install", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_image_runs_unprivileged_on_a_pinned_base() -> None:
    assert dockerfile("USER") == ["10001:10001"]
    bases = {line.split()[0] for line in dockerfile("FROM")} - {"base"}
    assert all(re.fullmatch(r"[a-z./-]+:\d+\.\d+\.\d+-\S+", base) for base in bases)


def compose(*files: str) -> dict[str, Any]:
    arguments = [argument for file in files for argument in ("-f", str(DEPLOY / "compose" / file))]
    environment = os.environ | {"LLAVA_KEY": "a-key", "GRAFANA_PASSWORD": "a-password"}
    config = json.loads(programs.run("docker-compose", *arguments, "config", "--format", "json", env=environment))
    services: dict[str, Any] = config["services"]
    return services


def test_compose_services_are_local_and_pinned() -> None:
    services = compose("compose.yaml", "compose.gpu.yaml")
    assert all(port["host_ip"] == "127.0.0.1" for service in services.values() for port in service["ports"])
    assert all(re.search(r":(v?\d+\.\d+\.\d+|cpu)$", service["image"]) for service in services.values())
    mounted = [Path(volume["source"]) for service in services.values() for volume in service["volumes"] if volume["type"] == "bind"]
    assert mounted
    assert all(path.is_file() for path in mounted)
    gateway = services["gateway"]
    assert gateway["read_only"]
    assert gateway["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert seconds(gateway["stop_grace_period"]) > NEEDED
    assert (Path(gateway["build"]["context"]) / gateway["build"]["dockerfile"]).samefile(DOCKERFILE)


def seconds(text: str) -> int:
    """Return the seconds of a time such as "1m5s"."""
    return sum(int(number) * {"m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([ms])", text))


def test_compose_needs_a_key() -> None:
    command = [programs.find("docker-compose"), "-f", str(DEPLOY / "compose" / "compose.yaml"), "config"]
    ended = subprocess.run(command, env=os.environ | {"LLAVA_KEY": ""}, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "LLAVA_KEY is missing a value: make one with `openssl rand -hex 32`" in ended.stderr


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    program = str(tmp_path / "llava-gateway")
    Path(program).symlink_to(Path(sys.executable).parent / "llava-gateway")  # the checkout's path may have a space
    text = UNIT.read_text().replace("/opt/llava-gateway/.venv/bin/llava-gateway", program).replace("User=llava-gateway", "User=daemon")
    assert program in text
    unit.write_text(text)
    programs.run("systemd-analyze", "verify", "--recursive-errors=no", unit)
    programs.run("systemd-analyze", "security", "--offline=true", "--threshold=25", unit)
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop) > NEEDED
    assert "\nKillMode=mixed\n" in text
