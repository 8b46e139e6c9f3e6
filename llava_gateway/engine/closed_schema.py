"""JSON Schemas whose objects have an end.

JSON Schema allows any further key in an object that does not state `additionalProperties`. A model that may add keys adds them until the
token limit. OpenAI's API and vLLM's default backend therefore close the objects that list their keys, and so does this module. vLLM's own
closing for the backend "guidance" also closes each part of an `allOf`, and then no document satisfies all parts.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Schema = dict[str, Any]

ANY_OBJECT = json.dumps(
    {
        "$ref": "#/$defs/object",
        "$defs": {
            "object": {
                "type": "object",
                "patternProperties": {"^.{1,64}$": {"$ref": "#/$defs/value"}},
                "additionalProperties": False,
                "maxProperties": 32,
            },
            "value": {
                "anyOf": [
                    {"type": "string", "maxLength": 2000},
                    {"type": ["number", "boolean", "null"]},
                    {"type": "array", "items": {"$ref": "#/$defs/value"}, "maxItems": 100},
                    {"$ref": "#/$defs/object"},
                ]
            },
        },
    }
)
"""Any JSON object, with bounds that an answer to a person does not reach. A weak model stays within a key or a string for good."""
IN_PLACE = ("allOf", "anyOf", "oneOf")
"""Keywords whose schemas apply to the same value as the schema that has the keyword."""
MAPS = ("properties", "patternProperties", "$defs", "definitions")
NESTED = ("additionalProperties", "items", "prefixItems", *IN_PLACE)
"""The keywords with schemas as values that the backend supports. The backend refuses `not`, `if` and the other ones."""
MAX_WORK = 10_000
"""The upper bound of the members and keys of all compositions of a schema. Members of members count again at each level."""


def close_objects(schema: str) -> str:
    """Return a JSON Schema in which each object that lists keys states `additionalProperties`.

    The statement is `false`, except in parts of a composition, such as the members of an `allOf`: there the whole composition is closed.
    Keys that are required are allowed. Text that is not a schema is returned unchanged, for the compiler to refuse.
    Raises ValueError if the schema has too many compositions.
    """
    try:
        root = json.loads(schema)
    except (ValueError, RecursionError):
        return schema
    nodes = _schemas(root)
    compositions = []
    work = 0
    for node in nodes:
        if family := _family(node, root):
            compositions.append((node, family))
            work = _add(work, len(family))
    parts = {id(part) for _, family in compositions for part in family}
    for node, family in compositions:
        if id(node) not in parts:
            for target, members in _closings(node, family, root):
                work = _add(work, _close(target, members))
    for node in nodes:
        if _lists_keys(node) and "additionalProperties" not in node:
            if id(node) in parts:
                node["additionalProperties"] = True
            else:
                _close(node, [node])
    return json.dumps(root)


def _add(work: int, more: int) -> int:
    if work + more > MAX_WORK:
        raise ValueError("it is too complicated")
    return work + more


def _schemas(root: object) -> list[Schema]:
    """Return all schemas within a schema, and the schema itself."""
    found: dict[int, Schema] = {}
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict) and id(value) not in found:
            found[id(value)] = value
            waiting.append(_resolve(value.get("$ref"), root))  # also outside of `$defs`
            waiting += [each for keyword in NESTED if isinstance(each := value.get(keyword), (dict, list))]
            waiting += [each for keyword in MAPS if isinstance(group := value.get(keyword), dict) for each in group.values()]
    return list(found.values())


def _family(node: Schema, root: object) -> list[Schema]:
    """Return the other schemas that apply to the same value together with `node`, if there are several. Otherwise return no schema.

    A schema with one list of alternatives, or with one reference, and no keys of its own is not a composition.
    """
    all_of = node.get("allOf")
    groups = len(all_of) if isinstance(all_of, list) else 0
    groups += sum(keyword in node for keyword in ("anyOf", "oneOf", "$ref")) + _lists_keys(node)
    if groups < 2:
        return []
    return _reachable(node, root)


def _reachable(node: Schema, root: object) -> list[Schema]:
    """Return all other schemas that apply to the same value as `node` or may do so."""
    found: dict[int, Schema] = {}
    waiting = list(_in_place(node, root))
    while waiting:
        member = waiting.pop()
        if id(member) not in found and member is not node:
            found[id(member)] = member
            waiting += _in_place(member, root)
    return list(found.values())


def _in_place(node: Schema, root: object) -> Iterator[Schema]:
    """Yield the schemas that apply to the same value as `node`, one step away."""
    for keyword in IN_PLACE:
        if isinstance(members := node.get(keyword), list):
            yield from (member for member in members if isinstance(member, dict))
    if isinstance(target := _resolve(node.get("$ref"), root), dict):
        yield target


def _resolve(reference: object, root: object) -> object:
    """Return the schema that a `$ref` names, or None. Only JSON pointers within the schema are followed (RFC 6901)."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    target = root
    for step in reference[1:].split("/")[1:]:
        if not isinstance(target, dict):
            return None
        target = target.get(step.replace("~1", "/").replace("~0", "~"))
    return target


def _lists_keys(node: Schema) -> bool:
    return isinstance(node.get("properties"), dict) or isinstance(node.get("patternProperties"), dict)


def _closings(node: Schema, family: Sequence[Schema], root: object) -> Iterator[tuple[Schema, list[Schema]]]:
    """Yield the schemas to close for a composition, each with the schemas whose keys it allows.

    Each alternative of an `anyOf` is closed by itself, so that it does not allow the keys of the other alternatives.
    """
    lists = [members for keyword in ("anyOf", "oneOf") if isinstance(members := node.get(keyword), list)]
    if len(lists) != 1 or not all(isinstance(member, dict) for member in lists[0]):
        yield node, [node, *family]
        return
    _add(0, len(lists[0]) * len(family))
    alternatives = [[member, *_reachable(member, root)] for member in lists[0]]
    elsewhere = {id(member) for members in alternatives for member in members}
    common = [node, *(member for member in family if id(member) not in elsewhere)]
    for members in alternatives:
        yield members[0], [*common, *members]
    if _lists_keys(node):
        node.setdefault("additionalProperties", True)


def _close(node: Schema, family: Iterable[Schema]) -> int:
    """Have `node` allow no other keys than its family lists or requires, unless a member states which other keys there may be.

    Return the number of keys.
    """
    keys: dict[str, Any] = {}
    patterns: dict[str, Any] = {}
    required: list[Any] = []
    listed = False
    for member in family:
        if member.get("additionalProperties", False) is not False:
            return 0
        listed = listed or _lists_keys(member)
        keys |= dict.fromkeys(_map(member, "properties"), True)
        patterns |= dict.fromkeys(_map(member, "patternProperties"), True)
        required += names if isinstance(names := member.get("required"), list) else []
    if not listed:
        return 0
    if not patterns:
        keys |= dict.fromkeys((name for name in required if isinstance(name, str) and name not in keys), True)
    node["additionalProperties"] = False
    if keys:
        node["properties"] = keys | _map(node, "properties")
    if patterns:
        node["patternProperties"] = patterns | _map(node, "patternProperties")
    return len(keys) + len(patterns)


def _map(node: Schema, keyword: str) -> Schema:
    return value if isinstance(value := node.get(keyword), dict) else {}
