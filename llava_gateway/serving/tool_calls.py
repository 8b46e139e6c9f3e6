"""Finds the calls of tools in the text of an answer, piece by piece.

A parser is given the text as the engine generates it. It returns the part that is ordinary text, and the pieces of calls. The result does
not depend on how the text is cut into pieces.
"""

import dataclasses
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from llava_gateway.types import ChatRequest, Delta, FinishReason, ToolCallDelta

CallFormatName = Literal["hermes", "llama3_json", "mistral", "list"]
MAX_HELD = 1024
"""Characters at the beginning of a call that are held until the call's name is known. White space before a call is held as long."""
PIECE = 4096
"""Characters of a long answer that are searched at once, because the rest of the piece is copied for each part of the answer."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a model writes calls: as JSON objects with a name and arguments, after a marker."""

    begin: str
    """The marker before the first call. Empty: calls stand at the beginning of the answer."""
    between: tuple[str, ...]
    """The strings that may stand before, between and after calls, besides white space."""
    has_text: bool = True
    """Whether the answer may have text beside calls. False: a grammar holds the answer to calls, and text is the beginning of a call that
    was cut off."""


FORMATS: dict[CallFormatName, CallFormat] = {
    "hermes": CallFormat("<tool_call>", ("<tool_call>", "</tool_call>")),
    "llama3_json": CallFormat("", ("<|python_tag|>", ";")),
    "mistral": CallFormat("[TOOL_CALLS]", ("[", "]", ",")),
    "list": CallFormat("", ("[", "]", ","), has_text=False),
}
"""The first three by the names of vLLM's parsers. `list` is the form of calls that a grammar enforces."""

_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE_STRING = re.compile(r'["{}\[\]]')


class ToolCallParser:
    """Finds the calls in the deltas of one answer, for each of its choices."""

    def __init__(self, request: ChatRequest, call_format: CallFormat) -> None:
        """`call_format`: is not used if the request names one tool, whose arguments are then the whole answer."""
        self._request = request
        self._format = call_format
        self._names = frozenset(tool.name for tool in request.tools)
        self._choices: dict[int, _Calls | _Arguments] = {}

    def parse(self, delta: Delta) -> Delta:
        """Return a delta with the calls that its text has been found to be. Text that may begin a call is held for a later delta."""
        choice = self._choices.get(delta.index)
        if choice is None:
            choice = self._choices[delta.index] = self._new_choice()
        text, calls = choice.push(delta.text, last=delta.finish_reason is not None)
        return dataclasses.replace(delta, text=text, tool_calls=tuple(calls), finish_reason=choice.finish_reason(delta.finish_reason))

    def _new_choice(self) -> "_Calls | _Arguments":
        if self._request.tool_choice == "named":
            return _Arguments(self._request.tools[0].name)
        return _Calls(self._format, self._names, parallel=self._request.parallel_tool_calls)


class _Arguments:
    """A choice that consists of the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = self._has_text = False

    def push(self, text: str, *, last: bool) -> tuple[str, list[ToolCallDelta]]:
        calls = [] if self._started else [_begin(0, self._name)]
        self._started = True
        if not self._has_text:
            text = text.lstrip()
            self._has_text = bool(text)
        if text:
            calls.append(ToolCallDelta(0, text))
        return "", calls

    def finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        """Return the finish reason. OpenAI's is "stop" for a call of a function that the request names."""
        return reason


class _Calls:
    """A choice that may have text, and calls in one format.

    `_rest` is the text that has been received and not been used yet. The method for the current part of the answer takes as much of it as
    it can, and returns whether the next part has begun.
    """

    def __init__(self, call_format: CallFormat, names: Collection[str], *, parallel: bool) -> None:
        self._format = call_format
        self._names = names
        self._parallel = parallel
        literals = "|".join(re.escape(each) for each in sorted(call_format.between, key=len, reverse=True))
        self._skipped = re.compile(rf"(?:\s|{literals})*")
        self._part = self._take_text if call_format.begin else self._take_between
        self._rest = ""
        self._raw = ""
        """The text since the last call, or since the marker: it is ordinary text if no call follows."""
        self._object: list[str] = []
        """The pieces of a call whose name is not known yet."""
        self._object_length = 0
        self._json = _JsonScanner()
        self._finished_calls = 0
        self._has_text = False
        self._last = False
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []

    def push(self, text: str, *, last: bool) -> tuple[str, list[ToolCallDelta]]:
        """Take the next piece of the answer. `last`: the answer ends with it. Returns ordinary text and pieces of calls."""
        for start in range(0, max(len(text), 1), PIECE):
            self._rest += text[start : start + PIECE]
            self._last = last and start + PIECE >= len(text)
            while self._part():
                pass
        if last:
            self._flush()
        result = "".join(self._text) if self._format.has_text else "", self._calls
        self._text, self._calls = [], []
        return result

    def finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        """Return "tool_calls" for a whole answer with calls."""
        return "tool_calls" if reason == "stop" and self._finished_calls and self._part != self._take_arguments else reason

    def _take_text(self) -> bool:
        """Take ordinary text, up to a marker."""
        rest, begin = self._rest, self._format.begin
        if not self._has_text:
            stripped = rest.lstrip()
            short = len(rest) - len(stripped) <= MAX_HELD
            if short and begin.startswith(stripped) and stripped != begin and not self._last:
                return False
            self._has_text = not (short and stripped.startswith(begin))
        end = rest.find(begin) if begin else -1
        if end >= 0:
            if self._has_text:
                self._text.append(rest[:end])
            self._raw = begin
            self._rest = rest[end + len(begin) :]
            self._part = self._take_between
            return True
        held = _partial(rest, begin)
        self._text.append(rest[: len(rest) - held])
        self._rest = rest[len(rest) - held :]
        return False

    def _take_between(self) -> bool:
        """Skip the strings before a call."""
        match = self._skipped.match(self._rest)
        assert match
        self._raw += match[0]
        self._rest = self._rest[match.end() :]
        if self._rest.startswith("{") and len(self._raw) <= MAX_HELD:
            self._json = _JsonScanner()
            self._object, self._object_length = [], 0
            self._part = self._take_head
            return True
        if len(self._raw) <= MAX_HELD and any(each.startswith(self._rest) for each in self._format.between):
            return False
        self._raw, self._rest = self._raw[:MAX_HELD], self._raw[MAX_HELD:] + self._rest
        self._give_up()
        return True

    def _take_head(self) -> bool:
        """Take the beginning of a call, up to its arguments. Take the whole call if it does not begin with its name."""
        if self._object_length < MAX_HELD:
            head = "".join((*self._object, self._rest))
            match = _HEAD.match(head[:MAX_HELD])
            if match and match[1] in self._names:
                self._calls.append(_begin(self._finished_calls, match[1]))
                self._rest = head[match.end() :]
                self._json = _JsonScanner()
                self._part = self._take_arguments
                return True
        end = self._json.scan(self._rest)
        self._object.append(self._rest[:end])
        self._object_length += end
        self._rest = self._rest[end:]
        if self._json.depth:
            return False
        whole = "".join(self._object)
        call = _call_of(whole, self._names)
        if call is None:
            self._give_up(whole)
        else:
            self._calls += [_begin(self._finished_calls, call[0]), ToolCallDelta(self._finished_calls, call[1])]
            self._end_call()
        return True

    def _take_arguments(self) -> bool:
        """Take the arguments of a call, up to the brace that closes them."""
        end = self._json.scan(self._rest)
        if end:
            self._calls.append(ToolCallDelta(self._finished_calls, self._rest[:end]))
        self._rest = self._rest[end:]
        if self._json.depth or not end:
            return False
        self._json = _JsonScanner(depth=1)
        self._part = self._take_tail
        return True

    def _take_tail(self) -> bool:
        """Skip the end of a call after its arguments: the closing brace, with other fields before it."""
        rest = self._rest.lstrip()
        self._rest = rest
        if not rest:
            return False
        if self._json.untouched and rest[0] not in "},":
            self._end_call()  # the model forgot the brace
            return True
        self._rest = rest[self._json.scan(rest) :]
        if self._json.depth:
            return False
        self._end_call()
        return True

    def _take_nothing(self) -> bool:
        """Ignore the rest of an answer that may have only one call."""
        self._rest = ""
        return False

    def _end_call(self) -> None:
        self._finished_calls += 1
        self._raw = ""
        self._part = self._take_between if self._parallel else self._take_nothing

    def _give_up(self, json: str = "") -> None:
        """Treat the text since the marker as ordinary text, because it does not become a call. `json`: an object that is none.

        The object is not searched for further markers: the work for a text with many of them would grow with the square of its length.
        """
        self._text += [self._raw[self._raw_text() :], json]
        self._has_text = True
        self._raw = ""
        self._part = self._take_text

    def _raw_text(self) -> int:
        """Return the place in `_raw` where ordinary text begins. Strings after a call belong to the call, up to the next marker."""
        marker = self._raw.find(self._format.begin) if self._format.begin else -1
        return 0 if not self._finished_calls else marker if marker >= 0 else len(self._raw)

    def _flush(self) -> None:
        """Return what is held at the end of the answer as text."""
        if self._part == self._take_head:
            self._text += [self._raw[self._raw_text() :], *self._object]
        elif self._part == self._take_between and self._raw_text() < len(self._raw):
            self._text += [self._raw[self._raw_text() :], self._rest]
        elif self._part == self._take_text:
            self._text.append(self._rest)
        self._rest = ""


class _JsonScanner:
    """Follows a JSON text through its strings and brackets. It does not check the JSON."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.untouched = True
        self._in_string = self._escaped = False

    def scan(self, text: str) -> int:
        """Return the end of the outermost value in `text`, or the length of `text` if the value goes on."""
        at = 0
        while at < len(text):
            self.untouched = False
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_IN_STRING if self._in_string else _OUTSIDE_STRING).search(text, at)
            if not found:
                return len(text)
            at = found.end()
            char = found[0]
            if char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = not self._in_string
            else:
                self.depth += 1 if char in "{[" else -1
                if self.depth <= 0:
                    self.depth = 0
                    return at
        return at


def _begin(index: int, name: str) -> ToolCallDelta:
    return ToolCallDelta(index, "", f"call_{secrets.token_hex(12)}", name)


def _call_of(text: str, names: Collection[str]) -> tuple[str, str] | None:
    """Return the name and the arguments of a call in JSON, or None for other JSON and for text that is not JSON."""
    try:
        call: Any = orjson.loads(text)
        if not isinstance(call, dict) or call.get("name") not in names:
            return None
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = orjson.loads(arguments)
        if arguments is None:
            arguments = {}
        return (call["name"], orjson.dumps(arguments).decode()) if isinstance(arguments, dict) else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, TypeError):
        return None


def _partial(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` that begins `marker`."""
    return next((length for length in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:length])), 0)
