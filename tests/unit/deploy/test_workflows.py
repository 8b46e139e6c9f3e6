"""The workflows of GitHub Actions: their schema and rights, and the commands and files that they name."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helpers import programs
from helpers.server import ROOT

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS: dict[str, Any] = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
JOBS = [pytest.param(job, id=f"{name}:{key}") for name, workflow in WORKFLOWS.items() for key, job in workflow["jobs"].items()]
RELEASE = WORKFLOWS["release.yml"]["jobs"]


def steps(job: dict[str, Any], key: str) -> Iterator[str]:
    """Yield the value of a key in each step that has it."""
    yield from (step[key] for step in job["steps"] if key in step)


def ancestors(name: str) -> set[str]:
    """Return the jobs of the release that must succeed before a job."""
    needs = set(RELEASE[name].get("needs", ()))
    return needs.union(*(ancestors(each) for each in needs))


def test_workflows_pass_zizmor() -> None:
    programs.run("zizmor", "--offline", "--no-progress", "--quiet", FOLDER, cwd=ROOT)


@pytest.mark.parametrize("job", JOBS)
def test_job_ends_and_its_commands_exist(job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 120
    makefile = (ROOT / "Makefile").read_text()
    for script in steps(job, "run"):
        checked = re.sub(r"\$\{\{.*?\}\}", "EXPRESSION", script)
        assert subprocess.run(["bash", "-n", "-c", checked]).returncode == 0, script
        for path in re.findall(r"(?:^|\s)((?:\.ci|\.github|deploy)/[\w./-]+)", script):
            assert (ROOT / path).exists(), path
        for target in re.findall(r"^make ([\w-]+)", script, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", ["publish", "images", "page"])
def test_nothing_is_published_before_the_suite_has_passed(name: str) -> None:
    assert {"suite", "package"} <= ancestors(name)


def test_only_jobs_that_publish_have_rights() -> None:
    assert WORKFLOWS["release.yml"]["permissions"] == {}
    rights = {name: {right for right, level in job["permissions"].items() if level == "write"} for name, job in RELEASE.items()}
    assert rights == {"suite": set(), "package": set(), "publish": {"id-token"}, "images": {"id-token"}, "page": {"contents"}}


def test_release_publishes_the_files_that_were_checked() -> None:
    """The jobs that publish build nothing themselves: they download the files of the job `package`."""
    uploaded = {step["with"]["name"] for step in RELEASE["package"]["steps"] if "upload-artifact" in step.get("uses", "")}
    assert uploaded == {"dist", "release"}
    assert any(script.startswith("python -m twine check --strict") for script in steps(RELEASE["package"], "run"))
    assert not any("build" in script for name in ("publish", "page") for script in steps(RELEASE[name], "run"))


def test_images_are_signed_by_their_digest() -> None:
    (sign,) = (step for step in RELEASE["images"]["steps"] if "cosign sign" in step.get("run", ""))
    assert sign["env"]["IMAGE"].endswith("@${{ steps.build.outputs.digest }}")
    (build,) = (step["with"] for step in RELEASE["images"]["steps"] if step.get("id") == "build")
    assert (build["provenance"], build["sbom"], build["push"]) == ("mode=max", True, True)
    assert (ROOT / build["file"]).is_file()
