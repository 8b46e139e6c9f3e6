"""How an API declares its request bodies.

Honoured fields are those of a strictly typed pydantic model. Refused and ignored fields are named with a reason. `/openapi.json` and the
field tables in docs/ come from the same declarations.
"""

import logging
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import MAX_TEXT, JsonBody
from llava_gateway.types import BodySlice

log = logging.getLogger(__name__)

INT64 = 1 << 63
TAG_PREFIX = "\ufdd0"
"""Begins the tag of each member of a union. Pydantic puts tags into an error's location; this non-character marks them."""
MAX_LOGGED_FIELDS = 1000
"""How many names of unknown fields are remembered, so that each is logged once."""
_logged_fields: set[str] = set()


def _check_image(value: Any) -> str | BodySlice:
    if isinstance(value, BodySlice) or (isinstance(value, str) and value):
        return value
    raise ValueError("must be an image, in a string")


ImageString = Annotated[str | BodySlice, PlainValidator(_check_image), WithJsonSchema({"type": "string", "minLength": 1})]
"""An image's URL, or its file in base64."""


class StrictModel(BaseModel):
    """A JSON object whose values have exactly the declared types: "true" is no boolean, 2.5 is no integer. It may have other fields."""

    model_config = ConfigDict(strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class RefusedField:
    """A field that asks for something that the server cannot do. Ignoring the field would give a wrong answer."""

    reason: str
    """Completes the sentence "FIELD is not supported: ..."."""
    allowed_values: tuple[Any, ...] = (None, False, 0, "", [], {})
    """Values that ask for nothing."""

    def allows(self, value: Any) -> bool:
        """Return whether `value` asks for nothing. The type counts: False is not 0."""
        return any(type(value) is type(allowed) and value == allowed for allowed in self.allowed_values)


class RequestBody(StrictModel):
    """The body of a POST. Fields that are not declared are ignored, since SDKs send new ones."""

    refused: ClassVar[dict[str, RefusedField]] = {}
    ignored: ClassVar[dict[str, str]] = {}
    """The reason why each field is ignored."""
    max_text: ClassVar[int | None] = MAX_TEXT
    """The upper bound of a string that is not an image, in bytes. None: strings may contain images and have no bound of their own."""

    @classmethod
    def read(cls, body: JsonBody) -> Self:
        """Parse a request's body, and free its JSON together with the fields that are not declared. Raises GatewayError."""
        return body.parse(cls.parse, max_text=cls.max_text)

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Validate a JSON object. Raises InvalidRequest with the path of the wrong field."""
        for name, value in body.items():
            if name in cls.refused and not cls.refused[name].allows(value):
                raise InvalidRequest(f"{name} is not supported: {cls.refused[name].reason}.", param=name)
        try:
            request = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            param = _path(first["loc"])
            raise InvalidRequest(f"{param}: {_explain(first)}.", param=param) from None
        cls._log_unknown_fields(body)
        return request

    @classmethod
    def _log_unknown_fields(cls, body: dict[str, Any]) -> None:
        if not log.isEnabledFor(logging.DEBUG):
            return
        honoured = {field.alias or name for name, field in cls.model_fields.items()}
        known = honoured | cls.refused.keys() | cls.ignored.keys()
        if unknown := {name[:50] for name in body.keys() - known} - _logged_fields:
            if len(_logged_fields) < MAX_LOGGED_FIELDS:
                _logged_fields.update(unknown)
            log.debug("unknown fields are ignored: %s", ", ".join(sorted(map(repr, unknown))))


def _explain(error: ErrorDetails) -> str:
    """Return the words that follow the field's path in an error message: "must be ..."."""
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and isinstance(error["input"], BodySlice):
        return f"must be text, and is {len(error['input'].ascii)} characters of base64"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be an object"
    return error["msg"].replace("Input should", "must", 1)


def _path(location: tuple[int | str, ...]) -> str:
    """Return pydantic's location as a path, such as `messages[0].content[1].image_url.url`, without the tags of unions."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(TAG_PREFIX):
            path += f".{step[:50]}" if path else step[:50]
    return path
