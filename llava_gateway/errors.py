"""All errors that a request can end with, as one tree. The core raises them; an API renders them in its dialect.

    GatewayError
    ├── InvalidRequest            400  the client can correct the request; `param` names the field
    │   ├── ContextLengthExceeded      prompt and answer do not fit the model's context
    │   ├── InvalidImage               `code` is one of OpenAI's image codes
    │   └── InvalidVideo               `code` is such a code with `video` in place of `image`
    ├── Unauthorized              401  no API key, or an unknown one
    ├── Forbidden                 403  a web page whose origin is not allowed, or a key without admin rights
    ├── NotFound                  404  no such path or model
    ├── MethodNotAllowed          405
    ├── BodyTooSlow               408
    ├── BodyTooLarge              413
    ├── UnsupportedMediaType      415
    ├── TooManyRequests           429  retry later
    ├── EngineFailed              500  the engine failed on this request
    ├── Unavailable               503  the engine is starting, stopping or dead; retry later
    ├── RequestTimeout            504  the answer was not complete in time
    └── InsufficientStorage       507  no room on disk for the data of this request

`str(error)` is shown to the client. It never contains a path, an address, or a third party's text that could contain one. Details for the
operator go to the log through exception chaining (`raise ... from cause`).
"""


class GatewayError(Exception):
    """An error with its HTTP status, and OpenAI's error `type` and `code`."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None) -> None:
        """Create an error; `code` replaces the class's own."""
        super().__init__(message)
        self.message = message
        """For the client: one or more sentences."""
        self.param = param
        """The path of the wrong field, such as `messages[0].content[1].image_url.url`."""
        if code is not None:
            self.code = code
        self.retry_after = retry_after
        """Seconds until a retry may succeed. None: not known."""

    @property
    def message_with_param(self) -> str:
        """The message, with the field before it if it does not name the field. For dialects that have no place for `param`."""
        return self.message if self.param is None or self.param in self.message else f"{self.param}: {self.message}"


class InvalidRequest(GatewayError):
    """The client can correct the request; `param` names the field."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt and its answer, do not fit the model's context."""

    code = "context_length_exceeded"


def context_length_exceeded(context_length: int, excess: str, reduce: str, total: str = "", *, param: str) -> ContextLengthExceeded:
    """Return the error for a request that does not fit the context.

    The sentences are OpenAI's, because clients recognise the error by them: LiteLLM then asks a model with a longer context
    (`context_window_fallbacks`).

    `context_length`: in tokens. `excess`: completes "However, ". `reduce`: the parts of the request that the client can shorten. `total`:
    further sentences about the tokens of the request.
    """
    message = (
        f"This model's maximum context length is {context_length} tokens. However, {excess}. Please reduce the length of the {reduce}."
    )
    return ContextLengthExceeded(f"{message} {total}".rstrip(), param=param)


class InvalidImage(InvalidRequest):
    """An image cannot be fetched, decoded or accepted; `code` is one of OpenAI's image codes."""

    code = "invalid_image"


def image_too_large(max_bytes: int) -> InvalidImage:
    """Return the error for an image file over the limit, fetched or sent inline."""
    return InvalidImage(f"The image is larger than {max_bytes >> 20} MiB.", code="image_too_large")


class InvalidVideo(InvalidRequest):
    """A video cannot be fetched, decoded or accepted; `code` is an image code with `video` in place of `image`."""

    code = "invalid_video"


class Unauthorized(GatewayError):
    """The request has no API key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(GatewayError):
    """The client may not do this: its web page's origin is not allowed, or its key has no admin rights."""

    status = 403
    type = "invalid_request_error"


class NotFound(GatewayError):
    """There is no such path or model."""

    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(GatewayError):
    """The path exists, but not with this HTTP method."""

    status = 405
    type = "invalid_request_error"


class BodyTooSlow(GatewayError):
    """The request's body was not complete in time."""

    status = 408
    type = "invalid_request_error"
    code = "body_timeout"


class BodyTooLarge(GatewayError):
    """The request's body, raw or parsed, is beyond a limit."""

    status = 413
    type = "invalid_request_error"


class UnsupportedMediaType(GatewayError):
    """The request's body is not JSON, or is compressed."""

    status = 415
    type = "invalid_request_error"


class TooManyRequests(GatewayError):
    """A limit of the server or of the API key is reached; the client may retry later."""

    status = 429
    type = "rate_limit_error"


class EngineFailed(GatewayError):
    """The engine ended this request without an answer."""


class Unavailable(GatewayError):
    """The engine is starting, stopping or dead, or the server cannot do this now; the client may retry later."""

    status = 503
    type = "overloaded"


class RequestTimeout(GatewayError):
    """The answer was not complete in time."""

    status = 504
    type = "server_error"
    code = "request_timeout"


class InsufficientStorage(GatewayError):
    """There is no room on disk for the data of this request."""

    status = 507
    type = "server_error"


class EngineStartError(Exception):
    """The engine did not start. The message is one line for the operator."""
