"""The response object, and the first and last events of its stream."""

import secrets
import time
from typing import Any

import orjson

from llava_gateway.api.openai.responses.output import COMPLETED, INCOMPLETE, EventWriter, Output
from llava_gateway.api.openai.responses.request import AllowedFunctionsChoice, CreateResponse, FunctionChoice, JsonSchemaTextFormat
from llava_gateway.errors import GatewayError
from llava_gateway.model_info import ModelInfo
from llava_gateway.types import Usage


def new_response_id() -> str:
    """Return an id that nobody can guess: without API keys, a response is as private as its id."""
    return f"resp_{secrets.token_hex(16)}"


class ResponseObject:
    """One response, from the moment at which its answer begins."""

    def __init__(self, response_id: str, request: CreateResponse, model: ModelInfo, first_position: int) -> None:
        """`first_position`: of the output among the response's items."""
        self.events = EventWriter()
        self.output = Output(response_id, first_position, self.events, may_call=bool(request.tools))
        self._fields: dict[str, Any] = {"id": response_id, "object": "response", "created_at": int(time.time())}
        self._echo = _echo(request, model)

    def begin(self) -> bytes:
        """Return the events that begin a stream."""
        response = orjson.Fragment(self._render("in_progress"))
        return b"".join(self.events.event(f"response.{kind}", {"response": response}) for kind in ("created", "in_progress"))

    def finished(self, usage: Usage) -> bytes:
        """Return the response with its whole answer as JSON."""
        if self.output.finish_reason == "length":
            return self._render(INCOMPLETE, usage=_render_usage(usage), incomplete_details={"reason": "max_output_tokens"})
        return self._render(COMPLETED, usage=_render_usage(usage), completed_at=int(time.time()))

    def end(self, finished: bytes) -> bytes:
        """Return the event that ends a stream. `finished`: the response as JSON."""
        status = INCOMPLETE if self.output.finish_reason == "length" else COMPLETED
        return self.events.event(f"response.{status}", {"response": orjson.Fragment(finished)})

    def not_stored(self) -> None:
        """Show in the response that it is not stored."""
        self._echo["store"] = False

    def fail(self, error: GatewayError) -> bytes:
        """Return the events that end a stream with an error."""
        shown = {"code": error.code or error.type, "message": error.message, "param": error.param}
        failed = self._render("failed", error={"code": _error_code(error), "message": error.message})
        event = self.events.event("error", shown)
        return event + self.events.event("response.failed", {"response": orjson.Fragment(failed)})

    def _render(self, status: str, **fields: Any) -> bytes:
        output = [orjson.Fragment(item) for item in self.output.items]
        empty = {"completed_at": None, "error": None, "incomplete_details": None, "usage": None}
        return orjson.dumps({**self._fields, "status": status, **empty, **fields, "output": output, **self._echo})


def _echo(request: CreateResponse, model: ModelInfo) -> dict[str, Any]:
    """Return the fields of a response that repeat its request, or say what the server does without them."""
    defaults = {"temperature": 1.0, "top_p": 1.0} | dict(model.default_sampling)
    return {
        "model": request.model,
        "instructions": request.instructions,
        "previous_response_id": request.previous_response_id or None,
        "store": request.store is not False,
        "background": False,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "temperature": defaults["temperature"] if request.temperature is None else request.temperature,
        "text": _text(request),
        "tool_choice": _tool_choice(request),
        "tools": [tool.model_dump() for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": defaults["top_p"] if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _text(request: CreateResponse) -> dict[str, Any]:
    text = request.text
    answer_format: dict[str, Any] = {"type": "text"}
    if text and text.format:
        answer_format = text.format.model_dump(by_alias=True)
    if text and isinstance(text.format, JsonSchemaTextFormat):
        answer_format["schema"] = answer_format["schema"] or {}
    return {"format": answer_format, "verbosity": (text and text.verbosity) or "medium"}


def _tool_choice(request: CreateResponse) -> Any:
    choice = request.tool_choice
    return choice.model_dump() if isinstance(choice, FunctionChoice | AllowedFunctionsChoice) else choice or "auto"


def _render_usage(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's `ResponseUsage`. Image tokens are among the input tokens, and named in their details."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
            "video_tokens": usage.video_tokens,
            "text_tokens": usage.text_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error_code(error: GatewayError) -> str:
    """Return the nearest of the codes that a response's error may have."""
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"
