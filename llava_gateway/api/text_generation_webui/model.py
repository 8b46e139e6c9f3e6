"""The description of the served model: `/api/v1/model`."""

from typing import Any, ClassVar

from pydantic import Field

from llava_gateway.api.schema import RequestBody
from llava_gateway.errors import InvalidRequest
from llava_gateway.serving.gateway import Gateway

LOADING = "it is for loading a model"


class ModelBody(RequestBody):
    """`POST /api/v1/model`."""

    action: str | None = Field(
        None, description="`info` or `list`; default: return the model's name. Other actions are refused: the operator loads the model"
    )

    ignored: ClassVar = {
        "model_name": LOADING,
        "args": LOADING,
        "settings": LOADING,
    }

    def result(self, model: str, gateway: Gateway) -> Any:
        """Return the field `result` of the response. Raises GatewayError."""
        match self.action:
            case None | "":
                return model
            case "list":
                return gateway.models.names()
            case "info":
                settings = {"truncation_length": gateway.model(model).context_length, "instruction_template": "None"}
                return {"model_name": model, "lora_names": [], "shared.settings": settings, "shared.args": {}}
            case action:
                raise InvalidRequest(f"action: only info and list are available; {action[:50]!r} is not.", param="action")
