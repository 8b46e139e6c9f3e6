"""The fields for tools of Anthropic's Messages, and their translation to the gateway's tools."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llava_gateway.api.anthropic.messages import MAX_NAME
from llava_gateway.api.schema import RequestBody, StrictModel
from llava_gateway.api.tools import MAX_TOOLS, NAME_FORM, ToolDefinition, ToolUse, check_name, named_tool, to_tools
from llava_gateway.errors import InvalidRequest


def _check_type(kind: Any) -> Any:
    if kind not in (None, "custom"):
        raise ValueError(f"must be custom, because the model can only call tools with an input_schema; {str(kind)[:50]} is not supported")
    return kind


class CustomTool(StrictModel):
    type: Annotated[Literal["custom"] | None, BeforeValidator(_check_type)] = Field(None, description="custom, which is the default")
    name: Annotated[str, AfterValidator(lambda name: check_name(name, MAX_NAME))] = Field(
        description=f"{NAME_FORM.format(MAX_NAME)}; no two tools have the same name"
    )
    description: str | None = Field(None, description="the model sees it")
    input_schema: dict[str, Any] = Field(description="the JSON Schema of the input, of type object")
    strict: bool | None = Field(None, description="ignored: where a grammar holds the call, its input always follows the schema")


class ToolChoice(StrictModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ToolFields(RequestBody):
    """The fields for tools, of messages and of the count of tokens."""

    tools: list[CustomTool] | None = Field(
        None, max_length=MAX_TOOLS, fail_fast=True, description=f"up to {MAX_TOOLS} tools of the client that the model may call (see Tools)"
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description="type none: no call; auto: the model chooses; any: one or more calls; tool: a call of the tool `name`; default auto; "
        "`disable_parallel_tool_use`: at most one call in an answer",
    )

    def tool_use(self) -> ToolUse:
        """Return the tools that the answer may call. Raises InvalidRequest for contradictory fields."""
        choice = self.tool_choice or ToolChoice(type="auto")
        if choice.type == "tool" and choice.name is None:
            raise InvalidRequest("tool_choice.name: the type tool requires the name of a tool.", param="tool_choice.name")
        if not self.tools:
            if choice.type in ("any", "tool"):
                raise InvalidRequest(f"tool_choice of type {choice.type} requires tools.", param="tool_choice")
            return ToolUse()
        tools = to_tools(_definition(tool, f"tools[{index}]") for index, tool in enumerate(self.tools))
        if choice.type == "none":
            return ToolUse()
        if choice.type == "tool" and choice.name is not None:
            return named_tool(tools, choice.name, "tool_choice.name", "tools")
        return ToolUse(tools, "required" if choice.type == "any" else "auto", not choice.disable_parallel_tool_use)


def _definition(tool: CustomTool, path: str) -> ToolDefinition:
    return ToolDefinition(tool.name, tool.description, tool.input_schema, path, f"{path}.input_schema")
