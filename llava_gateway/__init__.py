"""LLaVA behind an OpenAI-compatible API, on vLLM.

To embed the gateway, call `create_app` with `Settings`. It returns an ASGI app:

    from llava_gateway import Settings, create_app

    app = create_app(Settings(model="llava-demo"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_gateway.app import create_app
    from llava_gateway.settings import Settings

__version__ = "0.2.0"

__all__ = ["Settings", "__version__", "create_app"]


def __getattr__(name: str) -> Any:
    """Import a public name on demand. vLLM's processes import this package, too, and must not load the whole gateway."""
    modules = {"create_app": "llava_gateway.app", "Settings": "llava_gateway.settings"}
    if name in modules:
        return getattr(import_module(modules[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
