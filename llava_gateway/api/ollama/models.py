"""The descriptions of models: `/api/tags`, `/api/show` and `/api/ps`."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from llava_gateway.api.ollama.response import render_time
from llava_gateway.serving.gateway import Gateway

LATEST = ":latest"
NEVER = "9999-12-31T23:59:59Z"
DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "llava",
    "families": ["llava", "clip"],
    "parameter_size": "",
    "quantization_level": "",
}
"""Clients offer an upload of images for a model of the family `clip`."""


class ModelDescriptions:
    """Describes the served models under the names that Ollama's clients use: each has a tag after a colon."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def find(self, name: str | None) -> str:
        """Return the name under which the gateway serves the model `name`. Raises GatewayError.

        `:latest` may be there or not. Without a name it is the only model.
        """
        models = self._gateway.models
        if not name:
            return models.only_name()
        names = models.names()
        found = next((each for each in (name, name.removesuffix(LATEST)) if each in names), name)
        models.check(found)
        return found

    def tags(self) -> dict[str, Any]:
        """Return the answer of `/api/tags`: all models."""
        return {"models": [self._entry(name) | {"modified_at": self._modified_at(name)} for name in self._gateway.models.names()]}

    def running(self) -> dict[str, Any]:
        """Return the answer of `/api/ps`: the models that have been loaded. They stay loaded."""
        models = self._gateway.models
        lengths = {name: models.get(name).context_length for name in models.names()}
        return {
            "models": [
                self._entry(name) | {"expires_at": NEVER, "size_vram": 0, "context_length": length}
                for name, length in lengths.items()
                if length
            ]
        }

    def show(self, name: str) -> dict[str, Any]:
        """Return the answer of `/api/show`. Raises Unavailable while the model loads."""
        model = self._gateway.model(name)
        parameters = "\n".join(f"{parameter} {value:g}" for parameter, value in model.default_sampling.items())
        return {
            "modelfile": f"FROM {_with_tag(name)}\n",
            "parameters": parameters,
            "template": self._gateway.chat_template(name),
            "details": DETAILS,
            "model_info": {
                "general.architecture": "llava",
                "general.basename": name,
                "llava.context_length": model.context_length,
                "llava.vision.image_size": model.vision.side,
            },
            "capabilities": ["completion", "vision", *(["tools"] if self._gateway.can_choose_tools(name) else [])],
            "modified_at": self._modified_at(name),
        }

    def _entry(self, name: str) -> dict[str, Any]:
        """Return the fields of a model that all lists have. The size of a checkpoint is not known, and 0."""
        digest = hashlib.sha256(f"{self._gateway.models.root(name)} {name}".encode()).hexdigest()
        return {"name": _with_tag(name), "model": _with_tag(name), "size": 0, "digest": digest, "details": DETAILS}

    def _modified_at(self, name: str) -> str:
        return render_time(datetime.fromtimestamp(self._gateway.models.created(name), UTC))


def _with_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else name + LATEST
