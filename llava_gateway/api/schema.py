"""How an API declares its request bodies.

Honoured fields are those of a strictly typed pydantic model. Refused and ignored fields are named with a reason. `/openapi.json` and the
field tables in docs/ come from the same declarations.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, PlainValidator, Tag, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import MAX_TEXT, JsonBody
from llava_gateway.types import BodySlice

log = logging.getLogger(__name__)

INT64 = 1 << 63
TAG_PREFIX = "\ufdd0"
"""Begins the tag of each member of a union. Pydantic puts tags into an error's location; this non-character marks them."""
ONE, LIST = Tag(TAG_PREFIX + "one"), Tag(TAG_PREFIX + "list")
ONE_OR_LIST = Discriminator(lambda value: TAG_PREFIX + ("list" if isinstance(value, list) else "one"))
"""For a union of a list and of something else: `Annotated[Annotated[str, ONE] | Annotated[list[str], LIST], ONE_OR_LIST]`."""
MAX_CONVERSIONS, MAX_CONVERTED_LIST = 1000, 1 << 16
"""Upper bounds for the conversion of values, which takes up to a microsecond each: wrong values in a body, and the length of a list."""
MAX_EXACT_FLOAT = 1 << 53
"""From here on neighbouring integers are the same float, so the float may stand for another integer than the client meant."""
_JSON_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})")
_JSON_NUMBER = re.compile(_JSON_INTEGER.pattern + r"(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")
MAX_STRUCTURED_OUTPUT = 65_536
"""The upper bound of a schema, regular expression, grammar or list of choices, in characters: the time to compile it grows with it."""
MAX_LOGGED_FIELDS = 1000
"""How many names of unknown fields are remembered, so that each is logged once."""
_logged_fields: set[str] = set()


def _check_string_of(medium: str) -> Callable[[Any], str | BodySlice]:
    def check(value: Any) -> str | BodySlice:
        if isinstance(value, BodySlice) or (isinstance(value, str) and value):
            return value
        raise ValueError(f"must be {medium}, in a string")

    return check


_STRING = WithJsonSchema({"type": "string", "minLength": 1})
ImageString = Annotated[str | BodySlice, PlainValidator(_check_string_of("an image")), _STRING]
"""An image's URL, or its file in base64."""
VideoString = Annotated[str | BodySlice, PlainValidator(_check_string_of("a video")), _STRING]
"""A video's URL, or its file in base64."""


class StrictModel(BaseModel):
    """A JSON object whose values have exactly the declared types: 1 is no boolean, 2.5 is no integer. It may have other fields.

    `RequestBody.parse` converts a value that is written differently, such as "0.5" for 0.5.
    """

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
            request = cls._validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            param = _path(first["loc"])
            raise InvalidRequest(f"{param}: {_explain(first)}.", param=param) from None
        cls._log_unknown_fields(body)
        return request

    @classmethod
    def _validate(cls, body: dict[str, Any]) -> Self:
        """Validate a JSON object. Raises ValidationError for values that cannot be converted to the declared types either."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            if error.error_count() > MAX_CONVERSIONS:
                raise
            wrong = error.errors(include_url=False, include_context=False)
        for each in wrong:
            _convert(body, each["type"], each["loc"])
        return cls.model_validate(body)

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


@contextmanager
def error_path_prefix(path: str) -> Iterator[None]:
    """Put `path` before the field's path in every InvalidRequest that the block raises."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}.{error.message}", param=f"{path}.{error.param}") from None


def to_json(value: Any, param: str) -> str:
    """Return a JSON value of the client as JSON text. Raises InvalidRequest for `param` if the value is nested too deeply."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{param} is nested too deeply.", param=param) from None


def to_schema_text(schema: dict[str, Any], param: str) -> str:
    """Return a JSON Schema of the client as JSON text. Raises InvalidRequest for `param` if it is too long or nested too deeply."""
    text = to_json(schema, param)
    if len(text) > MAX_STRUCTURED_OUTPUT:
        raise InvalidRequest(f"{param} is longer than {MAX_STRUCTURED_OUTPUT} characters.", param=param)
    return text


def _to_float(value: Any) -> Any:
    """Return the number that a text spells, such as "0.5". Any other value is returned as it is."""
    if isinstance(value, str) and _JSON_NUMBER.fullmatch(value) and math.isfinite(number := float(value)):
        return number
    return value


def _to_int(value: Any) -> Any:
    """Return the integer that a text or a float spells, such as "8" or 8.0. Any other value is returned as it is."""
    if isinstance(value, str) and _JSON_INTEGER.fullmatch(value):
        return int(value)
    number = _to_float(value)
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < MAX_EXACT_FLOAT else value


def _to_bool(value: Any) -> Any:
    """Return the boolean that a text spells, such as "true" or Python's "True". Any other value is returned as it is."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) and len(value) < 6 else value


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"int_type": _to_int, "float_type": _to_float, "bool_type": _to_bool}
"""By the type of pydantic's error for a value that does not have the declared type."""


def _convert(body: dict[str, Any], error_type: str, location: tuple[int | str, ...]) -> None:
    """Convert the value at pydantic's location in `body` to the declared type, if the value spells one. Otherwise change nothing.

    In a list all values are converted, because the validation of a list ends at its first wrong value.
    """
    if error_type not in _CONVERSIONS:
        return
    convert, container = _CONVERSIONS[error_type], body
    *path, last = (step for step in location if isinstance(step, int) or not step.startswith(TAG_PREFIX))
    try:
        for step in path:
            container = container[step]  # type: ignore[index]  # a list if the step is an integer
        if not isinstance(container, list):
            container[last] = convert(container[last])  # type: ignore[index]
        elif len(container) <= MAX_CONVERTED_LIST:
            container[:] = map(convert, container)
    except (LookupError, TypeError):
        pass  # the path of a union's member, which is no path in the body


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
