"""The functions that a model may call, as every endpoint of the OpenAI API declares them."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llava_gateway.api.schema import StrictModel
from llava_gateway.api.tools import ToolDefinition

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must be 1 to 64 letters, digits, `_`, `-` or `.`")
    return name


def _check_type(value: Any) -> Any:
    if value != "function":
        raise ValueError("must be function, because the model can call no other tools")
    return value


_Name = Annotated[str, AfterValidator(_check_name)]
FunctionType = Annotated[Literal["function"], BeforeValidator(_check_type)]


class FunctionDefinition(StrictModel):
    name: _Name = Field(description="1 to 64 letters, digits, `_`, `-` or `.`; no two tools have the same name")
    description: str | None = Field(None, description="the model sees it")
    parameters: dict[str, Any] | None = Field(
        None, description="the JSON Schema of the arguments, of type object; default: no arguments; `{}`: any object"
    )
    strict: bool | None = Field(None, description="ignored: where a grammar holds the call, its arguments always follow the schema")

    def definition(self, path: str) -> ToolDefinition:
        """Return the function as all APIs declare tools. `path`: the function's path in the request."""
        return ToolDefinition(self.name, self.description, self.parameters, path, f"{path}.parameters")
