"""Promises of the design, held by reading the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llava_gateway

PACKAGE = Path(llava_gateway.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGE = sorted((PACKAGE / "doors" / "page" / "files").iterdir())
LAYERS = (  # what a module imports stands in its own layer or an earlier one
    (
        "llava_gateway.version",
        "llava_gateway.observability.context",
        "llava_gateway.errors",
        "llava_gateway.types",
        "llava_gateway.settings",
        "llava_gateway.cluster.haproxy",
        "llava_gateway.concurrency",
        "llava_gateway.files",
    ),
    (
        "llava_gateway.keys",
        "llava_gateway.observability.context",
        "llava_gateway.observability.logging",
        "llava_gateway.observability.metrics",
        "llava_gateway.observability.usage_log",
        "llava_gateway.feedback",
        "llava_gateway.serving.admission",
        "llava_gateway.serving.admission",
        "llava_gateway.serving.delta_stream",
        "llava_gateway.serving.answer_memory",
        "llava_gateway.observability.loop_monitor",
        "llava_gateway.tokenizer",
        "llava_gateway.prompts.renderer",
        "llava_gateway.prompts.templates",
        "llava_gateway.serving.model_registry",
        "llava_gateway.concurrency",
        "llava_gateway.serving.prepare",
        "llava_gateway.images",
        "llava_gateway.convert",
        "llava_gateway.engine.base",
        "llava_gateway.serving.model_registry",
    ),
    ("llava_gateway.serving.gateway",),
    ("llava_gateway.web",),
    ("llava_gateway.doors",),
    ("llava_gateway.demo",),
    ("llava_gateway.app", "llava_gateway"),
    ("llava_gateway.load", "llava_gateway.batch", "llava_gateway.cluster.app", "llava_gateway.client.remote"),
    ("llava_gateway.cli.main", "llava_gateway.__main__"),
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            yield from (
                f"{module}.{alias.name}" if (PACKAGE.parent / module.replace(".", "/")).is_dir() else module for alias in node.names
            )


def layer(module: str) -> int:
    ranks = [
        (len(prefix), rank)
        for rank, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(ranks)[1]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    module = name_of(path)
    for imported in imports(path):
        if imported.startswith("llava_gateway"):
            assert layer(imported) <= layer(module), f"{module} imports {imported}, which is built on it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "doors").rglob("*.py")), ids=name_of)
def test_doors_never_import_each_other(path: Path) -> None:
    own = ".".join(name_of(path).split(".")[:3])
    for imported in imports(path):
        if imported.startswith("llava_gateway.doors."):
            assert imported.startswith(own)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_one_package_imports_vllm(path: Path) -> None:
    if not name_of(path).startswith("llava_gateway.engine.vllm.engine"):
        assert not any(imported.split(".")[0] == "vllm" for imported in imports(path))


@pytest.mark.parametrize("path", [*MODULES, *PAGE], ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
