"""A wrong image path shows as a wrong answer: channels, orientation, crop, order, or a picture of another request."""

import io
import random
from concurrent.futures import ThreadPoolExecutor

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


def test_one_image(client: OpenAI) -> None:
    assert say(client, image(COLORFUL), "Describe this image.") == describe([COLORFUL])


def test_text_before_image_is_the_same_question(client: OpenAI) -> None:
    assert say(client, "Describe this image.", image(COLORFUL)) == describe([COLORFUL])


@pytest.mark.parametrize("place", range(4))
def test_one_place(client: OpenAI, place: int) -> None:
    assert say(client, image(COLORFUL), f"What color is the {PLACES[place]}?") == f"{COLORFUL[place].capitalize()}."


def test_two_images_in_order(client: OpenAI) -> None:
    assert say(client, image(COLORFUL), image(OTHER), "Describe these images.") == describe([COLORFUL, OTHER])
    assert say(client, image(OTHER), image(COLORFUL), "Describe these images.") == describe([OTHER, COLORFUL])


def test_four_images(client: OpenAI) -> None:
    rng = random.Random(4)
    grids = [random_grid(rng) for _ in range(4)]
    assert say(client, *map(image, grids), "Describe these images.") == describe(grids)


def test_the_same_image_twice(client: OpenAI) -> None:
    assert say(client, image(OTHER), image(OTHER), "Describe these images.") == describe([OTHER, OTHER])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_whatever_the_label_says(client: OpenAI, image_format: str) -> None:
    picture = image_part(data_uri(encode(draw(COLORFUL), image_format)))
    assert say(client, picture, "Describe this image.") == describe([COLORFUL])


@pytest.mark.parametrize("size", [(336, 336), (60, 40), (1200, 300), (300, 1200), (2400, 1800)])
def test_sizes_and_shapes(client: OpenAI, size: tuple[int, int]) -> None:
    picture = image_part(data_uri(encode(draw(COLORFUL, size), "JPEG", quality=90)))
    assert say(client, picture, "Describe this image.") == describe([COLORFUL])


def test_exif_orientation(client: OpenAI) -> None:
    """A phone stores the picture turned and says so (EXIF 6: turn it a quarter clockwise)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    draw(COLORFUL).transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    assert say(client, image_part(data_uri(buffer.getvalue())), "Describe this image.") == describe([COLORFUL])


def test_transparency_is_white(client: OpenAI) -> None:
    picture = draw(COLORFUL).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 168, 168))
    assert say(client, image_part(data_uri(encode(picture))), "What color is the top left?") == "White."


def test_image_by_url(client: OpenAI, origin: Origin) -> None:
    assert say(client, image_part(f"{origin.url}/picture"), "Describe this image.") == describe([GRID])


def test_image_by_redirected_url(client: OpenAI, origin: Origin) -> None:
    assert say(client, image_part(f"{origin.url}/redirect"), "Describe this image.") == describe([GRID])


def test_later_turns_still_see_the_image(client: OpenAI) -> None:
    messages = [
        user(image(COLORFUL), "Describe this image."),
        {"role": "assistant", "content": describe([COLORFUL])},
        user("What color is the bottom right?"),
    ]
    completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert completion.choices[0].message.content == "Orange."


def test_an_image_added_mid_chat(client: OpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        user(image(COLORFUL), "Describe this image."),
        {"role": "assistant", "content": describe([COLORFUL])},
        user(image(OTHER), "Describe these images."),
    ]
    completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=200)
    assert completion.choices[0].message.content == describe([COLORFUL, OTHER])


def test_no_image(client: OpenAI) -> None:
    assert "no image" in say(client, "Describe this image.")


def test_concurrent_pictures_are_never_mixed_up(client: OpenAI) -> None:
    rng = random.Random(60)
    grids = [random_grid(rng) for _ in range(60)]

    def ask(number: int) -> str:
        if number % 3 == 0:  # two images at once, one of them its neighbour's
            return say(client, image(grids[number]), image(grids[number - 1]), "Describe these images.")
        return say(client, image(grids[number]), "Describe this image.")

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    truths = [describe([grids[n], grids[n - 1]] if n % 3 == 0 else [grids[n]]) for n in range(60)]
    assert answers == truths


@pytest.mark.parametrize("way", ["url", "base64"])
def test_hugging_faces_parts(client: OpenAI, way: str) -> None:
    uri = data_uri(encode(draw(COLORFUL)))
    part = {"type": "image", way: uri if way == "url" else uri.partition(",")[2]}
    assert say(client, part, "Describe this image.") == describe([COLORFUL])


def test_an_answer_is_continued(client: OpenAI) -> None:
    whole = describe([COLORFUL])
    begun = whole[: whole.index(",")]
    messages = [user(image(COLORFUL), "Describe this image."), {"role": "assistant", "content": begun}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, extra_body=extra)
    assert begun + (completion.choices[0].message.content or "") == whole


def test_a_template_by_name(client: OpenAI) -> None:
    assert say(client, image(COLORFUL), "Describe this image.", extra_body={"chat_template": "llava_v1"}) == describe([COLORFUL])
