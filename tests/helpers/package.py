"""The wheel and the sdist, built from the repository, and environments with an installed wheel. Nothing is downloaded."""

import subprocess
import sys
import sysconfig
from collections.abc import Collection
from importlib.metadata import Distribution, distribution
from pathlib import Path

from helpers.server import ROOT
from packaging.requirements import Requirement

SITE = Path(sysconfig.get_paths()["purelib"])


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, into a folder. Return both paths."""
    _python("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def environment(folder: Path, wheel: Path, *, engine: bool) -> Path:
    """Create a virtual environment with an installed wheel, and return its `bin` directory.

    `engine`: it also has all packages of this environment. Otherwise it has only the packages that the gateway requires without an extra.
    """
    _python("-m", "venv", "--without-pip", folder)
    site = next(folder.glob("lib/python*/site-packages"))
    _python("-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-index", "--no-deps", wheel)
    if engine:
        (site / "packages.pth").write_text(f"import site; site.addsitedir({str(SITE)!r})\n")
    else:
        _link_requirements(site)
    return folder / "bin"


def _link_requirements(site: Path) -> None:
    """Link the packages that the installed gateway requires, directly or not, from this environment."""
    (metadata,) = site.glob("llava_gateway-*.dist-info")
    waiting = _requirements(Distribution.at(metadata), frozenset())
    known = set[str]()
    while waiting:
        requirement = waiting.pop()
        if requirement.name in known:
            continue
        known.add(requirement.name)
        found = distribution(requirement.name)
        waiting += _requirements(found, requirement.extras)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(SITE / top)


def _requirements(found: Distribution, extras: Collection[str]) -> list[Requirement]:
    """Return the requirements of a distribution that is installed with extras."""
    requirements = map(Requirement, found.requires or ())
    return [each for each in requirements if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))]


def _python(*arguments: str | Path) -> None:
    ended = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
