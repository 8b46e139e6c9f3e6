"""The model's answers show errors in the handling of images: channels, orientation, crop, order, or another request's image."""

import io
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.origin import GRID, Origin
from helpers.requests import MODEL, body, image, image_part, user
from openai import OpenAI
from PIL import Image

from llava_gateway.demo.images import PLACES, Grid, data_uri, describe, draw, encode, random_grid

COLORFUL: Grid = ("red", "blue", "green", "orange")
OTHER: Grid = ("white", "yellow", "black", "purple")


def say(client: OpenAI, *content: object, **fields: object) -> str:
    completion = client.chat.completions.create(**body(*content, **fields))
    assert completion.choices[0].finish_reason == "stop"
    return completion.choices[0].message.content or ""


def test_one_image_is_described(client: OpenAI) -> None:
    assert say(client, image(COLORFUL), "Describe this image.") == describe([COLORFUL])


def test_text_before_the_image_gets_the_same_answer(client: OpenAI) -> None:
    assert say(client, "Describe this image.", image(COLORFUL)) == describe([COLORFUL])


@pytest.mark.parametrize("place", range(4))
def test_each_quarter_of_the_image_is_seen_in_its_place(client: OpenAI, place: int) -> None:
    assert say(client, image(COLORFUL), f"What color is the {PLACES[place]}?") == f"{COLORFUL[place].capitalize()}."


def test_two_images_keep_their_order(client: OpenAI) -> None:
    assert say(client, image(COLORFUL), image(OTHER), "Describe these images.") == describe([COLORFUL, OTHER])
    assert say(client, image(OTHER), image(COLORFUL), "Describe these images.") == describe([OTHER, COLORFUL])


def test_image_and_question_as_two_messages_are_one_turn(client: OpenAI) -> None:
    """As Gradio's `load_chat` sends them. As two turns, the demo model would confuse left and right."""
    for question, answer in (
        ("Describe this image.", describe([COLORFUL])),
        *((f"What color is the {place}?", f"{color.capitalize()}.") for place, color in zip(PLACES, COLORFUL, strict=True)),
    ):
        assert say(client, messages=[user(image(COLORFUL)), user(question)]) == answer
        assert say(client, messages=[user(question), user(image(COLORFUL))]) == answer
    two = [user(image(COLORFUL)), user(image(OTHER), "Describe these images.")]
    assert say(client, messages=two) == describe([COLORFUL, OTHER])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": data_uri(encode(draw(COLORFUL)))},
        {"type": "input_image", "image_url": data_uri(encode(draw(COLORFUL))), "detail": "original"},
        {"image_url": {"url": data_uri(encode(draw(COLORFUL)))}},
    ],
    ids=["string", "input_image", "without a type"],
)
def test_part_in_another_form_is_seen(client: OpenAI, part: dict[str, Any]) -> None:
    for text in ("Describe this image.", {"type": "input_text", "text": "Describe this image."}):
        assert say(client, messages=[{"role": "user", "content": [part, text]}]) == describe([COLORFUL])


def test_images_of_every_role_are_counted_and_kept_in_order(client: OpenAI) -> None:
    history = [{"role": role, "content": [image(COLORFUL), "Look."]} for role in ("system", "user", "assistant")]
    completion = client.chat.completions.create(**body(messages=[*history, user("Describe these images.")], max_tokens=1))
    assert completion.usage
    assert completion.usage.model_dump()["prompt_tokens_details"]["image_tokens"] == 3 * 576
    red, white = ("red",) * 4, ("white",) * 4  # the demo model was not trained with system images, and takes some quarters for others
    shown = [{"role": "system", "content": [image(red)]}, user(image(white), "Describe these images.")]
    assert say(client, messages=shown) == describe([red, white])


def test_four_images_keep_their_order(client: OpenAI) -> None:
    rng = random.Random(4)
    grids = [random_grid(rng) for _ in range(4)]
    assert say(client, *map(image, grids), "Describe these images.") == describe(grids)


def test_same_image_twice_is_described_twice(client: OpenAI) -> None:
    assert say(client, image(OTHER), image(OTHER), "Describe these images.") == describe([OTHER, OTHER])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_format_is_recognised_despite_a_wrong_label(client: OpenAI, image_format: str) -> None:
    part = image_part(data_uri(encode(draw(COLORFUL), image_format)))
    assert say(client, part, "Describe this image.") == describe([COLORFUL])


@pytest.mark.parametrize("size", [(336, 336), (60, 40), (1200, 300), (300, 1200), (2400, 1800)])
def test_size_and_shape_do_not_change_the_answer(client: OpenAI, size: tuple[int, int]) -> None:
    part = image_part(data_uri(encode(draw(COLORFUL, size), "JPEG", quality=90)))
    assert say(client, part, "Describe this image.") == describe([COLORFUL])


def test_exif_orientation_is_applied(client: OpenAI) -> None:
    """Phones store images turned, with a tag for viewers (EXIF 6: turn the image clockwise by a quarter)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    draw(COLORFUL).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    assert say(client, image_part(data_uri(buffer.getvalue())), "Describe this image.") == describe([COLORFUL])


def test_transparent_pixels_are_white(client: OpenAI) -> None:
    drawn = draw(COLORFUL).convert("RGBA")
    drawn.paste((0, 0, 0, 0), (0, 0, 168, 168))
    assert say(client, image_part(data_uri(encode(drawn))), "What color is the top left?") == "White."


def test_image_is_fetched_by_url(client: OpenAI, origin: Origin) -> None:
    assert say(client, image_part(f"{origin.url}/picture"), "Describe this image.") == describe([GRID])


def test_image_is_fetched_through_a_redirect(client: OpenAI, origin: Origin) -> None:
    assert say(client, image_part(f"{origin.url}/redirect"), "Describe this image.") == describe([GRID])


def test_later_turn_still_sees_the_image(client: OpenAI) -> None:
    messages = [
        user(image(COLORFUL), "Describe this image."),
        {"role": "assistant", "content": describe([COLORFUL])},
        user("What color is the bottom right?"),
    ]
    completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert completion.choices[0].message.content == "Orange."


def test_image_added_during_a_chat_is_seen(client: OpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        user(image(COLORFUL), "Describe this image."),
        {"role": "assistant", "content": describe([COLORFUL])},
        user(image(OTHER), "Describe these images."),
    ]
    completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=200)
    assert completion.choices[0].message.content == describe([COLORFUL, OTHER])


def test_model_does_not_invent_a_missing_image(client: OpenAI) -> None:
    assert "no image" in say(client, "Describe this image.")


def test_concurrent_requests_do_not_mix_up_images(client: OpenAI) -> None:
    rng = random.Random(60)
    grids = [random_grid(rng) for _ in range(60)]

    def ask(number: int) -> str:
        if number % 3 == 0:  # two images, one of them that of another request
            return say(client, image(grids[number]), image(grids[number - 1]), "Describe these images.")
        return say(client, image(grids[number]), "Describe this image.")

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    truths = [describe([grids[n], grids[n - 1]] if n % 3 == 0 else [grids[n]]) for n in range(60)]
    assert answers == truths


@pytest.mark.parametrize("way", ["url", "base64"])
def test_hugging_face_image_part_is_accepted(client: OpenAI, way: str) -> None:
    uri = data_uri(encode(draw(COLORFUL)))
    part = {"type": "image", way: uri if way == "url" else uri.partition(",")[2]}
    assert say(client, part, "Describe this image.") == describe([COLORFUL])


def test_answer_is_continued(client: OpenAI) -> None:
    whole = describe([COLORFUL])
    begun = whole[: whole.index(",")]
    messages = [user(image(COLORFUL), "Describe this image."), {"role": "assistant", "content": begun}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, extra_body=extra)
    assert begun + (completion.choices[0].message.content or "") == whole


def test_chat_template_is_chosen_by_name(client: OpenAI) -> None:
    assert say(client, image(COLORFUL), "Describe this image.", extra_body={"chat_template": "llava_v1"}) == describe([COLORFUL])
