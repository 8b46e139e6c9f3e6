"""Parameters, stop sequences and conversations of SambaStudio's requests."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from helpers.documentation import rows
from helpers.sambastudio import DOCUMENT, conversation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llava_gateway.api.sambastudio.params import Params
from llava_gateway.api.sambastudio.protocol import (
    Conversation,
    InputsBody,
    Instance,
    InstanceBody,
    InstancesBody,
    Item,
    ItemsBody,
    Prompt,
    Turn,
    to_chat,
)
from llava_gateway.errors import InvalidRequest
from llava_gateway.http.request_body import loads
from llava_gateway.types import Text

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def junk(*keys: str) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=20)
        | st.sampled_from(["user", "true", "1"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(keys), inner, max_size=3),
        max_leaves=6,
    )


@UNHURRIED
@given(st.dictionaries(st.sampled_from([*Params.model_fields, *Params.refused]), junk("type", "value"), max_size=4))
def test_any_params_are_parsed_or_refused_by_name(given_params: dict[str, Any]) -> None:
    try:
        sampling = Params.parse(given_params).sampling()
    except InvalidRequest as error:
        assert error.param
        assert error.param.split(".")[1].split("[")[0] in given_params
        assert error.message.startswith(error.param)
    else:
        assert type(sampling.max_tokens) is int
        assert type(sampling.temperature) is float
        assert all(type(stop) is str and stop for stop in sampling.stop)


@UNHURRIED
@given(st.lists(st.text(min_size=1, max_size=20), max_size=16), st.sampled_from([str, json.dumps, lambda them: json.dumps(them)[1:-1]]))
def test_list_of_stop_sequences_in_a_text_is_parsed(strings: list[str], write: Callable[[list[str]], str]) -> None:
    assert Params.parse({"stop_sequences": {"type": "list", "value": write(strings)}}).stop_sequences == strings


@UNHURRIED
@given(st.text(max_size=20))
def test_any_text_is_a_stop_sequence_or_a_list_or_refused(text: str) -> None:
    try:
        found = Params.parse({"stop_sequences": text}).stop_sequences
    except InvalidRequest:
        assert text[0] in '["'
    else:
        assert found == ([text] if text else []) or text[0] in '["'


@UNHURRIED
@given(junk("messages", "role", "content", "tools") | st.lists(junk("role", "content")).map(lambda turns: {"messages": turns}))
def test_any_conversation_is_parsed_or_refused_by_name(given_conversation: Any) -> None:
    prompt = Prompt(json.dumps(given_conversation), "instances[0].prompt")
    try:
        chat = to_chat(prompt, Params.parse({"process_prompt": True}), "m", loads, stream=False)
    except InvalidRequest as error:
        assert str(error.param).startswith("instances[0].prompt")
    else:
        turns = [turn["role"] for turn in given_conversation["messages"]]
        assert [message.role for message in chat.messages] == ([] if "system" in turns else ["system"]) + turns


def test_images_belong_to_the_first_user_message() -> None:
    text = conversation(("system", "Be brief."), ("user", "a"), ("assistant", None), ("user", "b"))
    (prompt,) = InstanceBody.parse({"instance": {"prompt": text, "image_content": ["x", "y"]}}).prompts()
    chat = to_chat(prompt, Params.parse({"process_prompt": "true", "preprocessing": "llava-sn"}), "m", loads, stream=True)
    system, first, assistant, second = chat.messages
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user"]
    assert (system.content, assistant.content, second.content) == ((Text("Be brief."),), (), (Text("b"),))
    assert first.content == (*prompt.images, Text("a"))
    assert [each.param for each in prompt.images] == ["instance.image_content[0]", "instance.image_content[1]"]
    assert (chat.template, chat.stream) == ("llava-sn", True)


def test_parameters_of_a_deployment_change_no_answer() -> None:
    deployed = {"run_mode": "balanced", "model_parallel_rdus": 4, "max_seq_length": 4096, "batch_size": 1, "vocab_size": 32000}
    assert Params.parse(deployed) == Params.parse({})


def test_image_aspect_ratio_reaches_the_image_transform() -> None:
    for value in ("pad", {"type": "str", "value": "pad"}):
        chat = to_chat(Prompt("Hello", "instances[0]"), Params.parse({"image_aspect_ratio": value}), "m", loads, stream=False)
        assert chat.image_aspect_ratio == "pad"


DECLARED: tuple[type[BaseModel], ...] = (InstancesBody, InstanceBody, ItemsBody, InputsBody, Instance, Item, Params, Conversation, Turn)


def field_rows() -> Iterator[str]:
    for model in DECLARED:
        yield from rows(model)


def test_documentation_describes_every_field() -> None:
    for row in field_rows():
        assert row in DOCUMENT, row
    named = re.findall(r"^\| `[a-z_]+` \| (?:honoured|ignored|refused) \|.*$", DOCUMENT, re.MULTILINE)
    assert set(named) == set(field_rows())
