"""What is served: `/api/v1/model`."""

from typing import Any, ClassVar

from pydantic import Field

from llava_gateway.errors import InvalidRequest
from llava_gateway.gateway import Gateway
from llava_gateway.web.fields import RequestBody


class ModelBody(RequestBody):
    """`POST /api/v1/model`."""

    action: str | None = Field(
        None, description="`info` or `list`; none: the model's name. Others are refused: the operator loads the model"
    )

    ignored: ClassVar = {
        "model_name": "it goes with loading a model",
        "args": "they go with loading a model",
        "settings": "they go with loading a model",
    }

    def result(self, model: str, gateway: Gateway) -> Any:
        """Raises GatewayError."""
        match self.action:
            case None | "":
                return model
            case "list":
                return gateway.models.names()
            case "info":
                settings = {"truncation_length": gateway.model(model).context_length, "instruction_template": "None"}
                return {"model_name": model, "lora_names": [], "shared.settings": settings, "shared.args": {}}
            case action:
                raise InvalidRequest(f"action: {action[:50]!r} is the operator's to do; there are info and list.", param="action")
