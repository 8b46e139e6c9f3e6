"""The wheel and the sdist: their files, their metadata, and the commands of a wheel that is installed without an engine."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from helpers import package, programs
from helpers.deployment import CHART
from helpers.server import ROOT

from llava_gateway import __version__

pytestmark = pytest.mark.slow

SOURCES = {
    str(path.relative_to(ROOT)) for path in (ROOT / "llava_gateway").rglob("*") if path.is_file() and "__pycache__" not in path.parts
}
REPOSITORY = "https://github.com/llava-gateway/llava-gateway/"
CHANGELOG = """\
# Changelog

## Unreleased

- new

## 1.10.0 - 2026-11-29

### Added

- ten

## 1.1.0 - 2026-10-01

- [one](docs/one.md), [two](https://two.example)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return package.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


@pytest.fixture(scope="module")
def bin_without_engine(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package.environment(tmp_path_factory.mktemp("environment"), wheel, engine=False)


def run(command: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of an environment, without the variables that would lead it to the repository."""
    return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, env={"HF_HUB_OFFLINE": "1"})


def test_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == SOURCES
    for needed in ("py.typed", "demo/checkpoint/model.safetensors", "demo/MODEL_CARD.md", "api/chat_ui/static/index.html"):
        assert f"llava_gateway/{needed}" in names


def test_sdist_has_what_the_wheel_is_built_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == SOURCES | {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", ".gitignore"}


def test_package_index_accepts_the_metadata(built: tuple[Path, Path]) -> None:
    programs.run("twine", "check", "--strict", *built)


def test_readme_on_the_package_index_links_to_the_tag_of_its_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"llava_gateway-{__version__}.dist-info/METADATA"))
    assert metadata["version"] == __version__
    text = re.sub(r"^```.*?^```", "", str(metadata.get_payload()), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r'\]\(([^)]+)\)|<img src="([^"]+)"', text)
    assert len(links) > 10
    for markdown, image in links:
        link = markdown or image
        assert link.startswith("https://"), link
        if found := re.fullmatch(rf"{re.escape(REPOSITORY)}(blob|raw)/v{re.escape(__version__)}/([^#]+)(#.*)?", link):
            assert (found[1] == "raw") == bool(image), link
            assert (ROOT / found[2]).exists(), link
        else:
            assert not link.startswith(REPOSITORY), link


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["chat", "--help"], ["completion", "bash"]])
def test_commands_run_with_the_required_packages_alone(bin_without_engine: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Finds an import of a package that is not declared as a dependency."""
    ended = run(bin_without_engine / "llava-gateway", *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "llava-gateway" in ended.stdout


def test_doctor_names_the_extra_that_is_missing(bin_without_engine: Path, tmp_path: Path) -> None:
    ended = run(bin_without_engine / "llava-gateway", "doctor", "--json", cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    result = json.loads(ended.stdout)
    assert result["can_start"] is False
    (fault,) = (finding for finding in result["findings"] if finding["level"] == "fault" and finding["name"] != "address")
    assert (fault["name"], fault["text"]) == ("vLLM", "it is not installed")
    assert "llava-gateway[cpu]" in fault["remedy"]


def test_chart_and_documentation_have_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    named = re.findall(r"llava_gateway-([\d.]+)-py3", (ROOT / "docs" / "deploy.md").read_text())
    assert set(named) == {__version__}


def test_changelog_has_the_headings_of_keep_a_changelog() -> None:
    headings = re.findall(r"^(##+) (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    for level, heading in headings:
        if level == "##":
            assert re.fullmatch(r"Unreleased|\d+\.\d+\.\d+ - (\d{4}-\d\d-\d\d|not released)", heading), heading
        elif level == "###":
            assert heading in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"), heading


def test_release_notes_are_the_section_of_the_version(tmp_path: Path) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(CHANGELOG)
    script = ROOT / ".github" / "release_notes.py"

    def notes(version: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, version, changelog], capture_output=True, text=True, timeout=60)

    assert notes("1.10.0").stdout == "### Added\n\n- ten\n"
    assert notes("1.1.0").stdout == f"- [one]({REPOSITORY}blob/v1.1.0/docs/one.md), [two](https://two.example)\n"
    missing = notes("1.1.1")
    assert missing.returncode == 1
    assert "no section for 1.1.1" in missing.stderr
