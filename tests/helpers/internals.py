"""Contracts of names that a library does not document."""

import importlib
import inspect
from typing import Any


def check_parameters(name: str, parameters: str, library: str, package: str) -> None:
    """Fail with a plain sentence unless a function or class exists and has the parameters.

    `name`: as `module:Class.method`. `parameters`: names with spaces between. `library`: for the sentence, such as `vLLM`. `package`: what
    has to be adapted then.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        assert hasattr(found, part), f"{library} has no {name} any more. Adapt the package {package}."
        found = getattr(found, part)
    missing = set(parameters.split()) - set(inspect.signature(found).parameters)
    assert not missing, f"{library}'s {path} no longer has {', '.join(sorted(missing))}. Adapt the package {package}."
