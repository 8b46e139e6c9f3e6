"""Promises of docs/architecture.md, held by reading the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llava_gateway

PACKAGE = Path(llava_gateway.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
STATIC = sorted((PACKAGE / "api" / "chat_ui" / "static").iterdir())
LAYERS = (
    ("errors", "settings", "concurrency", "files"),
    ("storage",),
    ("tokenizer", "auth"),
    ("model_info",),
    ("types",),
    ("prompts", "observability", "storage"),
    ("images", "videos", "convert", "memory"),
    ("engine",),
    ("serving",),
    ("http", "feedback"),
    ("api",),
    ("demo",),
    ("app",),
    ("client", "cluster", "batch", "loadtest", "doctor"),
    ("cli", "__main__"),
)
"""Modules and packages of the package, lowest first. A module imports from its own layer and from lower ones."""
MAX_LINES, MIN_LINES, MAX_FUNCTION = 450, 25, 60


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
    """`llava_gateway` itself is the lowest layer: it has the version, and imports the app on demand."""
    part = module.partition(".")[2].partition(".")[0]
    return next((rank for rank, parts in enumerate(LAYERS) if part in parts), -1)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_no_higher_layer(path: Path) -> None:
    module = name_of(path)
    if module == "llava_gateway":
        return
    assert layer(module) >= 0, f"{module} is on no layer"
    for imported in imports(path):
        if imported.startswith("llava_gateway"):
            assert layer(imported) <= layer(module), f"{module} imports {imported}, which is on a higher layer"


@pytest.mark.parametrize("path", sorted((PACKAGE / "api").rglob("*.py")), ids=name_of)
def test_api_imports_no_other_api(path: Path) -> None:
    """Shared are `base`, `operation`, `schema`, `tools`, and the messages of OpenAI's chats, which votes have, too."""
    own = ".".join(name_of(path).split(".")[:3])
    names = ("base", "operation", "schema", "tools", "openai.messages")
    shared = tuple(f"llava_gateway.api.{name}" for name in names)
    for imported in imports(path):
        if imported.startswith("llava_gateway.api."):
            assert imported.startswith((own, *shared)), f"{name_of(path)} imports {imported}"


FORBIDDEN = (
    ("llava_gateway.observability", "llava_gateway.engine"),
    ("llava_gateway.observability", "llava_gateway.serving"),
    ("llava_gateway.observability", "llava_gateway.auth"),
    ("llava_gateway.http", "llava_gateway.api"),
)


@pytest.mark.parametrize(("module", "other"), FORBIDDEN)
def test_cut_imports_stay_cut(module: str, other: str) -> None:
    for path in MODULES:
        if name_of(path).startswith(module):
            assert not any(imported.startswith(other) for imported in imports(path)), name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_vllm_package_imports_vllm(path: Path) -> None:
    if not name_of(path).startswith("llava_gateway.engine.vllm"):
        assert not any(imported.split(".")[0] == "vllm" for imported in imports(path))


VIDEO_WORKER = tuple(f"llava_gateway.videos.{name}" for name in ("container", "frames", "worker"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_workers_of_videos_import_pyav(path: Path) -> None:
    """FFmpeg must not run in the gateway's own process."""
    if name_of(path) not in VIDEO_WORKER:
        assert not any(imported.split(".")[0] == "av" or imported.startswith(VIDEO_WORKER) for imported in imports(path))


@pytest.mark.parametrize("path", [*MODULES, *STATIC], ids=name_of)
def test_file_is_neither_long_nor_tiny(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES
    if path.suffix == ".py" and path.name not in ("__init__.py", "__main__.py"):
        assert lines >= MIN_LINES


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_package_face_has_no_code(path: Path) -> None:
    """A face has public names: constants, imports, and `__getattr__` where they are imported on demand."""
    for node in ast.parse(path.read_text()).body:
        assert not isinstance(node, ast.ClassDef)
        assert not isinstance(node, ast.FunctionDef) or node.name == "__getattr__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_function_is_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"
