"""The fields for tools in a chat's request, and their translation to the gateway's tools.

They are declared after OpenAI's `CreateChatCompletionRequest`. `functions` and `function_call` are the older names of `tools` and
`tool_choice`.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from llava_gateway.api.openai.function_tools import (
    CHOICE_BY_TYPE,
    PARALLEL_TOOL_CALLS,
    TOOL_CHOICE,
    TOOLS,
    AnyToolChoice,
    FunctionDefinition,
    FunctionType,
)
from llava_gateway.api.schema import TAG_PREFIX, RequestBody, StrictModel
from llava_gateway.api.tools import MAX_TOOLS, ToolUse, allowed_tools, any_tool, named_tool, to_tools
from llava_gateway.errors import InvalidRequest
from llava_gateway.types import Tool


class FunctionTool(StrictModel):
    type: FunctionType = "function"
    function: FunctionDefinition


class FunctionName(StrictModel):
    name: str


class NamedToolChoice(StrictModel):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(StrictModel):
    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice] = Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)


class AllowedToolsChoice(StrictModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


_ToolChoice = Annotated[
    AnyToolChoice
    | Annotated[NamedToolChoice, Tag(TAG_PREFIX + "function")]
    | Annotated[AllowedToolsChoice, Tag(TAG_PREFIX + "allowed_tools")],
    CHOICE_BY_TYPE,
]
_FunctionCall = Annotated[
    Annotated[Literal["none", "auto"], Tag(TAG_PREFIX + "word")] | Annotated[FunctionName, Tag(TAG_PREFIX + "name")],
    Discriminator(lambda value: TAG_PREFIX + ("word" if isinstance(value, str) else "name")),
]


class ToolFields(RequestBody):
    """The fields for tools, of chat completions and of `/tokenize`."""

    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True, description=TOOLS)
    tool_choice: _ToolChoice | None = Field(
        None,
        description=TOOL_CHOICE,
    )
    parallel_tool_calls: bool | None = Field(None, description=PARALLEL_TOOL_CALLS)
    functions: list[FunctionDefinition] | None = Field(
        None, max_length=MAX_TOOLS, fail_fast=True, description="the older form of tools; the answer then has function_call"
    )
    function_call: _FunctionCall | None = Field(None, description="the older form of tool_choice: none, auto, or a function's name")

    @property
    def uses_functions(self) -> bool:
        """Whether the request has the older form, so that the answer must have it, too."""
        return bool(self.functions)

    def tool_use(self) -> ToolUse:
        """Return the tools that the answer may call. Raises InvalidRequest for contradictory fields."""
        if not self.tools and not self.functions:
            self._check_no_choice()
            return ToolUse()
        if self.tools and self.functions:
            raise InvalidRequest("functions is the older form of tools; send only one of them.", param="functions")
        if self.tools:
            if self.function_call is not None:
                raise InvalidRequest("function_call belongs to functions; send tool_choice.", param="function_call")
            tools = to_tools(tool.function.definition(f"tools[{index}].function") for index, tool in enumerate(self.tools))
            return _chosen(tools, self.tool_choice, self.parallel_tool_calls is not False)
        if self.tool_choice is not None:
            raise InvalidRequest("tool_choice belongs to tools; send function_call.", param="tool_choice")
        functions = to_tools(function.definition(f"functions[{index}]") for index, function in enumerate(self.functions or ()))
        if isinstance(self.function_call, FunctionName):
            return named_tool(functions, self.function_call.name, "function_call.name", "functions")
        return ToolUse() if self.function_call == "none" else ToolUse(functions, "auto", parallel=False, param="functions")

    def _check_no_choice(self) -> None:
        for name, other in (("tool_choice", "tools"), ("function_call", "functions")):
            if getattr(self, name) not in (None, "none"):
                raise InvalidRequest(f"{name} requires {other}.", param=name)


def _chosen(tools: tuple[Tool, ...], choice: str | NamedToolChoice | AllowedToolsChoice | None, parallel: bool) -> ToolUse:
    """Return how `tool_choice` lets the answer use the tools. Raises InvalidRequest for a tool that is not among them."""
    if isinstance(choice, NamedToolChoice):
        return named_tool(tools, choice.function.name, "tool_choice.function.name", "tools")
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        names = [(each.function.name, f"tool_choice.allowed_tools.tools[{i}].function.name") for i, each in enumerate(allowed.tools)]
        return allowed_tools(tools, names, allowed.mode, parallel)
    return any_tool(tools, choice, parallel)
