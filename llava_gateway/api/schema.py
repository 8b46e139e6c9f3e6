"""Declaring a request body, for every door: fields that are honoured are a pydantic model's, strictly typed; those that are refused or
ignored are named with the reason. `/openapi.json` and the documentation come from the same declarations.
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
TAG = "\ufdd0"
"""How the tags of unions begin, which stand in pydantic's locations: with what no sane key does."""
_named: set[str] = set()


def _image(value: Any) -> str | BodySlice:
    if isinstance(value, BodySlice) or (isinstance(value, str) and value):
        return value
    raise ValueError("must be an image, in a string")


ImageString = Annotated[str | BodySlice, PlainValidator(_image), WithJsonSchema({"type": "string", "minLength": 1})]
"""An image's URL, or its base64."""


class Strict(BaseModel):
    """A JSON object whose fields have exactly their types: no "true" for true, no 2.5 for an integer. Other fields are left alone."""

    model_config = ConfigDict(strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that asks for what this server does not do: to ignore it would be to answer another question."""

    why: str
    unless: tuple[Any, ...] = (None, False, 0, "", [], {})
    """Values that ask for nothing."""

    def allows(self, value: Any) -> bool:
        return any(type(value) is type(harmless) and value == harmless for harmless in self.unless)


class RequestBody(Strict):
    """The body of a POST. Fields that are neither honoured, ignored nor refused are ignored too, since SDKs send new ones."""

    refused: ClassVar[dict[str, Refused]] = {}
    ignored: ClassVar[dict[str, str]] = {}
    max_text: ClassVar[int | None] = MAX_TEXT
    """Bytes of the longest string that is no picture; None where texts have pictures in them."""

    @classmethod
    def read(cls, body: JsonBody) -> Self:
        """As `parse`, of a body that has just come. Fields that are not declared are dropped with it."""
        return body.parse(cls.parse, max_text=cls.max_text)

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """InvalidRequest, with the path of the field, for whatever is wrong."""
        for name, value in body.items():
            if name in cls.refused and not cls.refused[name].allows(value):
                raise InvalidRequest(f"{name} is not supported: {cls.refused[name].why}.", param=name)
        try:
            request = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            param = _path(first["loc"])
            raise InvalidRequest(f"{param}: {_explain(first)}.", param=param) from None
        cls._log_unknown(body)
        return request

    @classmethod
    def _log_unknown(cls, body: dict[str, Any]) -> None:
        if not log.isEnabledFor(logging.DEBUG):
            return
        honoured = {field.alias or name for name, field in cls.model_fields.items()}
        known = honoured | cls.refused.keys() | cls.ignored.keys()
        if unknown := {name[:50] for name in body.keys() - known} - _named:
            if len(_named) < 1000:
                _named.update(unknown)
            log.debug("fields that nobody here knows, ignored: %s", ", ".join(sorted(map(repr, unknown))))


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and isinstance(error["input"], BodySlice):
        return f"must be text, and is {len(error['input'].ascii)} characters of base64"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be an object"
    return error["msg"].replace("Input should", "must", 1)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].image_url.url`, from pydantic's location. Tags of unions are left out."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(TAG):
            path += f".{step[:50]}" if path else step[:50]
    return path
