"""Every way in which a request can fail: one tree, drawn here. The core raises these; a door renders them in its dialect.

    GatewayError
    ├── InvalidRequest            400  the client can mend it; `param` names the field
    │   ├── ContextLengthExceeded      prompt and answer do not fit the model's context
    │   └── InvalidImage               `code` is one of OpenAI's image codes
    ├── Unauthorized              401  no key, or one that nobody gave out
    ├── Forbidden                 403  a web page that nobody has let in, a key that is no admin's
    ├── NotFound                  404  no such path or model
    ├── MethodNotAllowed          405
    ├── BodyTooSlow               408
    ├── BodyTooLarge              413
    ├── UnsupportedMediaType      415
    ├── TooManyRequests           429  retry later
    ├── EngineFailed              500  the engine gave up on this request
    ├── Unavailable               503  the engine is starting, stopping or dead; retry later
    ├── OutOfTime                 504  the answer was not whole in time
    └── OutOfStorage              507  there is no room for what is to be kept

`str(error)` is for the client: it never holds a path, an address or a third party's text that could. What the operator needs
besides goes to the log through exception chaining (`raise ... from cause`).
"""


class GatewayError(Exception):
    """A failure with its HTTP status, and OpenAI's error `type` and `code`."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """The offending field, as a path: `messages[0].content[1].image_url.url`."""
        if code is not None:
            self.code = code
        self.retry_after = retry_after
        """Seconds after which a retry makes sense."""


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class InvalidImage(InvalidRequest):
    code = "invalid_image"


def image_too_large(max_bytes: int) -> InvalidImage:
    """Return the error for an image file over the limit, fetched or sent inline."""
    return InvalidImage(f"The image is larger than {max_bytes >> 20} MiB.", code="image_too_large")


class Unauthorized(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(GatewayError):
    status = 403
    type = "invalid_request_error"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"


class BodyTooSlow(GatewayError):
    status = 408
    type = "invalid_request_error"
    code = "body_timeout"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"


class UnsupportedMediaType(GatewayError):
    status = 415
    type = "invalid_request_error"


class TooManyRequests(GatewayError):
    status = 429
    type = "rate_limit_error"


class EngineFailed(GatewayError):
    """The engine ended this request without an answer."""


class Unavailable(GatewayError):
    status = 503
    type = "overloaded"


class RequestTimeout(GatewayError):
    status = 504
    type = "server_error"
    code = "request_timeout"


class InsufficientStorage(GatewayError):
    status = 507
    type = "server_error"


class EngineStartError(Exception):
    """The engine did not start; the message is one line for the operator."""
