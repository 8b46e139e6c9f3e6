"""Votes over HTTP: the server keeps nothing unasked, refuses what is not a vote, and exports a dataset."""

import random
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from helpers.commands import run, samples
from helpers.origin import GRID as ORIGIN_GRID
from helpers.origin import Origin
from helpers.requests import MODEL, body, image, image_part, user
from helpers.server import FeedbackServer, Server
from PIL import Image

from llava_gateway.demo.images import data_uri, describe, draw, encode

GRID = ("red", "blue", "green", "white")
OTHER = ("yellow", "black", "orange", "purple")
ASKED = "Describe this image."


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def vote_request(*messages: dict[str, Any], vote: str = "up", model: str = MODEL) -> dict[str, Any]:
    return {"model": model, "vote": vote, "messages": messages}


def test_no_vote_is_kept_without_the_flag(server: Server) -> None:
    before = set(server.log.parent.rglob("*"))
    answer = httpx.post(f"{server.url}/feedback", json=vote_request(user(image(GRID), ASKED), said("Red.")), timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert set(server.log.parent.rglob("*")) == before


def test_vote_on_an_answer_is_exported_to_a_dataset(feedback_server: FeedbackServer, tmp_path: Path) -> None:
    asked = body(image(GRID), ASKED)
    headers = {"key": feedback_server.keys["alice"]}
    completion = httpx.post(f"{feedback_server.server.v1}/chat/completions", json=asked, headers=headers, timeout=60).json()
    answer = completion["choices"][0]["message"]["content"]
    voted = feedback_server.vote(vote_request(*asked["messages"], said(answer)))
    assert voted.status_code == 200
    assert voted.headers["x-content-type-options"] == "nosniff"

    record = feedback_server.records()[-1]
    content = encode(draw(GRID))
    name = f"{blake3(content).hexdigest()}.png"
    conversations = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": describe([GRID])}]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.pop("time"))
    told = {"id": voted.json()["id"], "model": MODEL, "vote": "up", "key": "alice", "system": ""}
    assert record == told | {"image": [name], "conversations": conversations}
    assert (feedback_server.folder / "images" / name).read_bytes() == content
    modes = {path.stat().st_mode & 0o777 for path in feedback_server.folder.rglob("*") if path.is_file()}
    assert (feedback_server.folder.stat().st_mode & 0o777, modes) == (0o700, {0o600})

    exported = run("export-dataset", feedback_server.folder, tmp_path / "dataset")
    assert exported.returncode == 0, exported.stderr
    found = {sample["id"]: sample for sample in samples(tmp_path / "dataset")}
    assert found[record["id"]] == {"id": record["id"], "image": name, "conversations": conversations}
    assert (tmp_path / "dataset" / "images" / name).read_bytes() == content


def test_images_are_kept_in_order_and_once(feedback_server: FeedbackServer, origin: Origin) -> None:
    shown = image(OTHER), "First.", image_part(f"{origin.url}/redirect"), image(OTHER)
    turns = user(*shown), said("Yes."), user("And?", image(GRID)), said("So.")
    assert feedback_server.vote(vote_request({"role": "system", "content": "Be short."}, *turns, vote="flag")).status_code == 200
    record = feedback_server.records()[-1]
    assert record["image"] == [f"{blake3(encode(draw(grid))).hexdigest()}.png" for grid in (OTHER, ORIGIN_GRID, OTHER, GRID)]
    assert [turn["value"] for turn in record["conversations"]] == ["<image>\n<image>\n<image>\nFirst.", "Yes.", "<image>\nAnd?", "So."]
    assert (record["system"], record["vote"]) == ("Be short.", "flag")
    names = {name for record in feedback_server.records() for name in record["image"]}
    assert {path.name for path in (feedback_server.folder / "images").iterdir()} == names


def large_png() -> str:
    """Return a PNG whose header declares 60,000 x 60,000 pixels."""
    file = bytearray(encode(Image.new("L", (1, 1))))
    file[16:24] = (60_000).to_bytes(4) * 2
    return data_uri(bytes(file))


def truncated_png() -> str:
    return data_uri(encode(draw(OTHER))[:-200])


HELLO = user("Hello"), said("Hello!")
IMAGE = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        (vote_request(*HELLO, vote="sideways"), 400, "vote"),
        ({"model": MODEL, "messages": HELLO}, 400, "vote"),
        ({"model": MODEL, "vote": "up"}, 400, "messages"),
        (vote_request(vote="up"), 400, "messages"),
        (vote_request(*HELLO, model="no-such"), 404, "model"),
        (vote_request(user("Hello")), 400, "messages"),
        (vote_request(said("Hello!")), 400, "messages[0].role"),
        (vote_request(user("Hello"), *HELLO), 400, "messages[1].role"),
        (vote_request(*HELLO, {"role": "system", "content": "Now."}, said("Yes.")), 400, "messages[2].role"),
        (vote_request({"role": "system", "content": "Now."}), 400, "messages"),
        (vote_request(user("x " * (1 << 19)), said("!")), 400, "messages"),
        (vote_request(user("Hello"), {"role": "assistant", "content": [image(GRID)]}), 400, "messages[1].content[0].image_url.url"),
        (vote_request(user(image_part("data:image/png;base64,AAAA")), said("!")), 400, IMAGE),
        (vote_request(user(image_part("http://10.0.0.1/x.png")), said("!")), 400, IMAGE),
        (vote_request(user(image_part("file:///etc/passwd")), said("!")), 400, IMAGE),
        (vote_request(user(image_part(large_png())), said("!")), 400, IMAGE),
        (vote_request(user(image_part(truncated_png())), said("!")), 400, IMAGE),
    ],
)
def test_bad_vote_is_refused_and_leaves_no_file(feedback_server: FeedbackServer, given: dict[str, Any], status: int, param: str) -> None:
    feedback_server.vote(vote_request(*HELLO))
    before = {path: path.stat().st_size for path in feedback_server.folder.rglob("*")}
    answer = feedback_server.vote(given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert {path: path.stat().st_size for path in feedback_server.folder.rglob("*")} == before


def test_keys_and_their_limits_apply_to_votes(feedback_server: FeedbackServer) -> None:
    assert httpx.post(f"{feedback_server.server.url}/feedback", json=vote_request(*HELLO), timeout=60).status_code == 401
    assert feedback_server.vote(vote_request(*HELLO), "bob").json()["error"]["code"] == "model_not_found"
    assert feedback_server.vote(vote_request(*HELLO), "carol").status_code == 200
    assert feedback_server.records()[-1]["key"] == "carol"
    assert feedback_server.vote(vote_request(*HELLO), "carol").json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx.get(f"{feedback_server.server.url}/feedback", headers={"key": feedback_server.keys["dave"]}, timeout=60).status_code == 405


def noise() -> bytes:
    """Return a new PNG of about 0.7 MB."""
    return encode(Image.frombytes("RGB", (500, 480), random.randbytes(500 * 480 * 3)))


def test_full_feedback_directory_refuses_votes(feedback_server: FeedbackServer) -> None:
    """The limit is 1 MiB, and the votes so far take some kilobytes."""
    assert feedback_server.vote(vote_request(user(image_part(data_uri(noise()))), said("Noise."))).status_code == 200
    before = {path: path.stat().st_size for path in feedback_server.folder.rglob("*")}
    refused = feedback_server.vote(vote_request(user(image_part(data_uri(noise()))), said("Noise.")))
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "feedback_full")
    assert {path: path.stat().st_size for path in feedback_server.folder.rglob("*")} == before
    assert feedback_server.vote(vote_request(*HELLO)).status_code == 200
