"""Checks of responses against the OpenAPI document, for requests that schemathesis generates from the document."""

import re
from typing import Any

from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

ENGINE_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/tokenize", "/detokenize", "/version")
"""The paths whose responses are checked with the real engine. All others are checked with an engine that answers at once."""
load_all_checks()


def check_conformance(case: Any, response: Any) -> None:
    """Raise if a response has no documented status, type or shape, or if a request that the document forbids is not refused."""
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    if response.status_code != 413 and not _spells_a_value(case.body):  # schemathesis does not count 413 as a refusal
        checks.append(negative_data_rejection)
    case.validate_response(response, checks=checks)


def _spells_a_value(body: Any) -> bool:
    """Return whether a body has a text or a float that the server takes as a number, an integer or a boolean, such as "8" and 8.0."""
    if isinstance(body, dict | list):
        return any(map(_spells_a_value, body.values() if isinstance(body, dict) else body))
    if isinstance(body, float):
        return body.is_integer()
    return isinstance(body, str) and bool(re.fullmatch(r"-?[0-9.]+([eE][+-]?[0-9]+)?|true|false", body, re.IGNORECASE))
