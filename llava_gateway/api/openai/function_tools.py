"""The functions that a model may call, as every endpoint of the OpenAI API declares them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from llava_gateway.api.schema import TAG_PREFIX, StrictModel
from llava_gateway.api.tools import NAME_FORM, ToolDefinition, check_name

MAX_NAME = 64
TOOLS = "up to 128 functions that the model may call (see Tools)"
TOOL_CHOICE = (
    "none: no call; auto: the model chooses; required: one or more calls; a function: a call of this function; "
    "allowed_tools: auto or required among some of the tools; default auto"
)
PARALLEL_TOOL_CALLS = "false: at most one call in an answer; default true"
"""The descriptions of the fields `tools`, `tool_choice` and `parallel_tool_calls`."""


def _check_type(value: Any) -> Any:
    if value != "function":
        raise ValueError("must be function, because the model can call no other tools")
    return value


def _choice_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, str):
        return TAG_PREFIX + "word"
    return TAG_PREFIX + kind if kind in ("function", "allowed_tools") else None


AnyToolChoice = Annotated[Literal["none", "auto", "required"], Tag(TAG_PREFIX + "word")]
CHOICE_BY_TYPE = Discriminator(
    _choice_tag,
    custom_error_type="tool_choice",
    custom_error_message="must be none, auto, required, or an object of type function or allowed_tools",
)
"""For a `tool_choice` that is an `AnyToolChoice`, or an object with the tag `function` or `allowed_tools`."""
_Name = Annotated[str, AfterValidator(lambda name: check_name(name, MAX_NAME))]
FunctionType = Annotated[Literal["function"], BeforeValidator(_check_type)]


class FunctionDefinition(StrictModel):
    name: _Name = Field(description=f"{NAME_FORM.format(MAX_NAME)}; no two tools have the same name")
    description: str | None = Field(None, description="the model sees it")
    parameters: dict[str, Any] | None = Field(
        None, description="the JSON Schema of the arguments, of type object; default: no arguments; `{}`: any object"
    )
    strict: bool | None = Field(None, description="ignored: where a grammar holds the call, its arguments always follow the schema")

    def definition(self, path: str) -> ToolDefinition:
        """Return the function as all APIs declare tools. `path`: the function's path in the request."""
        return ToolDefinition(self.name, self.description, self.parameters, path, f"{path}.parameters")
