"""Merging consecutive messages of one role, because chat templates and models expect that user and assistant alternate.

Some clients send an image and the question about it as two messages of the user, such as Gradio's `load_chat`.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

from llava_gateway.types import ImageSource, Message, Text, VideoUrl


def merge_turns(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages with each series of one role merged into one message, in order. Messages with the role tool stay separate."""
    if all(first.role != second.role or first.role == "tool" for first, second in pairwise(messages)):
        return messages
    series = [list(group) for _, group in groupby(messages, key=lambda message: message.role)]
    return [message for each in series for message in (each if each[0].role == "tool" else [_merge(each)])]


def _merge(series: Sequence[Message]) -> Message:
    """Return one message with all parts and tool calls of a series. A line break joins two texts that meet."""
    content: list[list[str] | ImageSource | VideoUrl] = []
    for message in series:
        for index, part in enumerate(message.content):
            if not isinstance(part, Text):
                content.append(part)
            elif index == 0 and content and isinstance(content[-1], list):
                content[-1].append(part.text)
            else:
                content.append([part.text])
    parts = tuple(Text("\n".join(part)) if isinstance(part, list) else part for part in content)
    calls = tuple(call for message in series for call in message.tool_calls)
    return Message(series[0].role, parts, calls, images_in_place=any(message.images_in_place for message in series))
