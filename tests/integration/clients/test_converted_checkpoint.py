"""A converted checkpoint on the real engine gives the same tokens as the demo model."""

from collections.abc import Iterator

import openai
import pytest
from helpers import original_checkpoints as originals
from helpers.conversion import convert_demo
from helpers.requests import image, user
from helpers.server import Server, serve

from llava_gateway.prompts.templates import CURIOUS_USER


@pytest.fixture(scope="module")
def converted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    converted = convert_demo(tmp_path_factory.mktemp("converted"))
    with serve(
        tmp_path_factory.mktemp("server"), "--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20), model=str(converted)
    ) as started:
        yield started


def test_converted_model_gives_the_same_tokens_as_the_demo_model(server: Server, converted_server: Server) -> None:
    """Greedy, with the same words around: the demo's own template has no system prompt."""
    twin, ours = (openai.OpenAI(base_url=each.v1, api_key="none", max_retries=0) for each in (server, converted_server))
    system = {"role": "system", "content": CURIOUS_USER}
    first, second = image(("red", "blue", "green", "white")), image(("yellow", "black", "orange", "purple"))
    for message in (
        user(first, "Describe this image."),
        user(first, second, "Describe these images."),
        user(second, "What color is the top left?"),
        user("Hello"),
    ):
        said = []
        for client, model, messages in ((twin, "llava-demo", [system, message]), (ours, "my model", [message])):
            answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=200, logprobs=True)  # type: ignore[call-overload]
            tokens = [token.token for token in answer.choices[0].logprobs.content]
            said.append((tokens, answer.usage.prompt_tokens, answer.choices[0].finish_reason))
        assert said[0] == said[1]
        assert len(said[0][0]) > 1


def test_image_is_padded_as_by_the_original(converted_server: Server) -> None:
    """A wide picture's left and right ends are lost where it is cropped."""
    client = openai.OpenAI(base_url=converted_server.v1, api_key="none", max_retries=0)
    answers = []
    for ratio in (None, "pad", "crop"):
        wide = originals.wide_image()
        extra = {"image_aspect_ratio": ratio} if ratio else {}
        answer = client.chat.completions.create(
            model="my model",
            messages=[user(wide, "Describe this image.")],
            temperature=0,
            max_tokens=60,
            extra_body=extra,  # type: ignore[list-item]
        )
        answers.append(answer.choices[0].message.content)
    assert answers[0] == answers[1] != answers[2]
