"""The gateway on a cluster of Ray Serve. `build` returns the application: `import_path: llava_gateway.cluster:build`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_gateway.cluster.app import build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    """Import on demand: `llava-gateway-haproxy` is in this package and does not need Ray."""
    if name == "build":
        from llava_gateway.cluster.app import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
