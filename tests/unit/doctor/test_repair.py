"""The repair of an installation for CPUs, in environments with small stand-ins for torch's packages."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.server import ROOT

pytestmark = pytest.mark.slow

TORCH = """\
class library:
    defined = []

    class Library:
        def __init__(self, name, kind):
            self.name = name

        def define(self, schema):
            library.defined.append(f"{self.name}::{schema.partition('(')[0]}")
"""
TORCHVISION = """\
import torch

for operator in ("torchvision::nms", "torchvision::qnms"):
    if operator not in torch.library.defined:
        raise RuntimeError(f"operator {operator} does not exist")
"""
CANNOT_LOAD = 'raise OSError("Could not load this library")\n'
UNINSTALL = """\
import pathlib
import sys

site = pathlib.Path({site!r})
for name in sys.argv:
    (site / f"{{name}}.py").unlink(missing_ok=True)
"""


class Environment:
    """A virtual environment without packages."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))

    def add(self, **modules: str) -> None:
        for name, code in modules.items():
            (self.site / f"{name}.py").write_text(code)

    def files(self) -> set[str]:
        return {path.name for path in self.site.iterdir() if path.name != "__pycache__"}

    def repair(self, path: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(ROOT), "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(self.python), "-m", "llava_gateway.doctor.repair"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=self.site)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def test_repair_declares_the_operators_and_uninstalls_what_cannot_load(environment: Environment) -> None:
    pip = UNINSTALL.format(site=str(environment.site))
    environment.add(torch=TORCH, torchvision=TORCHVISION, torchaudio=CANNOT_LOAD, torchcodec="", pip=pip)
    repaired = environment.repair()
    assert (repaired.returncode, repaired.stderr) == (0, "")
    assert len(repaired.stdout.splitlines()) == 2
    subprocess.run([environment.python, "-c", "import torchvision"], check=True, timeout=60)
    hook = {"_torchvision_operators.py", "_torchvision_operators.pth"}
    assert environment.files() == {"torch.py", "torchvision.py", "torchcodec.py", "pip.py"} | hook
    again = environment.repair()
    assert (again.returncode, again.stdout) == (0, "")


def test_repair_uses_uv_in_an_environment_without_pip(environment: Environment, tmp_path: Path) -> None:
    environment.add(torchcodec=CANNOT_LOAD)
    without = environment.repair()
    assert without.returncode == 1
    assert "has no pip: uninstall torchcodec" in without.stderr
    uv = tmp_path / "uv"
    uv.write_text(f"#!{sys.executable}\n{UNINSTALL.format(site=str(environment.site))}")
    uv.chmod(0o755)
    assert environment.repair(path=str(tmp_path)).returncode == 0
    assert environment.files() == set()


def test_repair_leaves_another_fault_alone(environment: Environment) -> None:
    environment.add(torchvision='raise ImportError("no libjpeg")\n')
    failed = environment.repair()
    assert failed.returncode == 1
    assert "no libjpeg" in failed.stderr
    assert environment.files() == {"torchvision.py"}


def test_sound_environment_is_not_changed(environment: Environment) -> None:
    environment.add(torchvision="", torchaudio="", torchcodec="")
    repaired = environment.repair()
    assert (repaired.returncode, repaired.stdout, repaired.stderr) == (0, "", "")
    assert environment.files() == {"torchvision.py", "torchaudio.py", "torchcodec.py"}
