"""Videos in prompts: each becomes one placeholder, at its place, and no text of a client becomes one."""

import pytest
from helpers.prompts import IMAGE, VIDEO, video_model_info

from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.renderer import PromptRenderer
from llava_gateway.prompts.templates import BUILT_IN
from llava_gateway.types import CompletionRequest, ImageUrl, Message, Text, VideoUrl

RENDERER = PromptRenderer(video_model_info())
QUESTION = Text("What happens?")


@pytest.mark.parametrize("template", BUILT_IN)
def test_built_in_template_places_a_video_like_an_image(template: str) -> None:
    with_image = RENDERER.chat([Message("user", (IMAGE, QUESTION))], template)
    with_video = RENDERER.chat([Message("user", (VIDEO, QUESTION))], template)
    assert with_video.text == with_image.text.replace("<image>", "<video>")
    assert (with_video.token_ids.count(RENDERER.image_id), with_video.token_ids.count(RENDERER.video_id or 0)) == (0, 1)


@pytest.mark.parametrize("template", BUILT_IN)
def test_images_and_videos_keep_their_order(template: str) -> None:
    text = RENDERER.chat([Message("user", (IMAGE, VIDEO, Text("Compare."), VIDEO, IMAGE))], template).text
    assert [text[at : at + 2] for at in range(len(text)) if text.startswith(("<image>", "<video>"), at)] == ["<i", "<v", "<v", "<i"]


def test_videos_in_place_stay_between_the_texts() -> None:
    content = (Text("First "), VIDEO, Text(" then "), IMAGE, Text("."))
    assert "First <video> then <image>." in RENDERER.chat([Message("user", content, images_in_place=True)]).text


@pytest.mark.parametrize("parts", [("<video>",), ("Is it <video>\n?",), ("<vid", "eo>"), ("<v\ufdd0ideo>",)])
def test_text_of_a_client_never_becomes_a_video(parts: tuple[str, ...]) -> None:
    for template in ("llava-hf", "plain"):
        prompt = RENDERER.chat([Message("user", (VIDEO, *map(Text, parts)))], template)
        assert prompt.token_ids.count(RENDERER.video_id or 0) == 1


def test_answer_cannot_continue_a_video() -> None:
    with pytest.raises(InvalidRequest, match="no videos"):
        RENDERER.chat([Message("user", (QUESTION,)), Message("assistant", (VIDEO,))], continue_last=True)


def test_template_without_videos_is_refused_and_drops_none() -> None:
    renderer = PromptRenderer(video_model_info())
    with pytest.raises(InvalidRequest, match="does not show all videos"):
        renderer.chat([Message("user", (VIDEO, QUESTION))])  # the demo model's template knows only images


@pytest.mark.parametrize(("prompt", "videos"), [("<video>", 0), ("<video><video>", 1), ("What?", 1), ((1, RENDERER.video_id or 0, 5), 0)])
def test_completion_with_another_number_of_videos_than_placeholders_is_refused(prompt: str | tuple[int, ...], videos: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        RENDERER.completion(CompletionRequest(model="m", prompt=prompt, videos=(VIDEO,) * videos))
    assert refused.value.param == "videos"


def test_completion_takes_images_and_videos() -> None:
    request = CompletionRequest(model="m", prompt="a <video> b <image>", images=(ImageUrl("", "i"),), videos=(VideoUrl("", "v"),))
    prompt = RENDERER.completion(request)
    expanded = RENDERER.expand(prompt.token_ids, [3], [2])
    assert (expanded.count(RENDERER.image_id), expanded.count(RENDERER.video_id or 0)) == (3, 2)
    assert len(expanded) == len(prompt.token_ids) + 3
