"""Votes: nothing is kept unasked, what is no vote is refused, and what was answered survives."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from helpers.commands import run, samples, vote_on
from helpers.field_rows import rows
from helpers.origin import GRID as ORIGIN_GRID
from helpers.origin import Origin
from helpers.requests import MODEL, body, image, image_part, user
from helpers.server import ROOT, Polling, Server
from PIL import Image

from llava_gateway.api.feedback import FeedbackRequest
from llava_gateway.demo.images import data_uri, describe, draw, encode
from llava_gateway.feedback.store import Store, read

GRID = ("red", "blue", "green", "white")
OTHER = ("yellow", "black", "orange", "purple")
ASKED = "Describe this image."
DOCS = (ROOT / "docs" / "feedback.md").read_text()


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def ballot(*messages: dict[str, Any], vote: str = "up", model: str = MODEL) -> dict[str, Any]:
    return {"model": model, "vote": vote, "messages": messages}


def test_nothing_is_kept_without_the_flag(server: Server) -> None:
    before = set(server.log.parent.rglob("*"))
    answer = httpx.post(f"{server.url}/feedback", json=ballot(user(image(GRID), ASKED), said("Red.")))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert set(server.log.parent.rglob("*")) == before


def test_from_an_answer_to_a_dataset(polling: Polling, tmp_path: Path) -> None:
    asked = body(image(GRID), ASKED)
    headers = {"key": polling.keys["alice"]}
    completion = httpx.post(f"{polling.server.v1}/chat/completions", json=asked, headers=headers, timeout=60).json()
    answer = completion["choices"][0]["message"]["content"]
    voted = polling.vote(ballot(*asked["messages"], said(answer)))
    assert voted.status_code == 200
    assert voted.headers["x-content-type-options"] == "nosniff"

    record = polling.records()[-1]
    picture = encode(draw(GRID))
    name = f"{blake3(picture).hexdigest()}.png"
    conversations = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": describe([GRID])}]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.pop("time"))
    told = {"id": voted.json()["id"], "model": MODEL, "vote": "up", "key": "alice", "system": ""}
    assert record == told | {"image": [name], "conversations": conversations}
    assert (polling.folder / "images" / name).read_bytes() == picture
    modes = {path.stat().st_mode & 0o777 for path in polling.folder.rglob("*") if path.is_file()}
    assert (polling.folder.stat().st_mode & 0o777, modes) == (0o700, {0o600})

    exported = run("export-dataset", polling.folder, tmp_path / "dataset")
    assert exported.returncode == 0, exported.stderr
    found = {sample["id"]: sample for sample in samples(tmp_path / "dataset")}
    assert found[record["id"]] == {"id": record["id"], "image": f"images/{name}", "conversations": conversations}
    assert (tmp_path / "dataset" / "images" / name).read_bytes() == picture


def test_pictures_are_kept_in_order_and_once(polling: Polling, origin: Origin) -> None:
    shown = image(OTHER), "First.", image_part(f"{origin.url}/redirect"), image(OTHER)
    turns = user(*shown), said("Yes."), user("And?", image(GRID)), said("So.")
    assert polling.vote(ballot({"role": "system", "content": "Be short."}, *turns, vote="flag")).status_code == 200
    record = polling.records()[-1]
    assert record["image"] == [f"{blake3(encode(draw(grid))).hexdigest()}.png" for grid in (OTHER, ORIGIN_GRID, OTHER, GRID)]
    assert [turn["value"] for turn in record["conversations"]] == ["<image>\n<image>\n<image>\nFirst.", "Yes.", "<image>\nAnd?", "So."]
    assert (record["system"], record["vote"]) == ("Be short.", "flag")
    names = {name for record in polling.records() for name in record["image"]}
    assert {path.name for path in (polling.folder / "images").iterdir()} == names


def large_png() -> str:
    """Of 60,000 x 60,000 pixels, by its header."""
    file = bytearray(encode(Image.new("L", (1, 1))))
    file[16:24] = (60_000).to_bytes(4) * 2
    return data_uri(bytes(file))


def cut_short() -> str:
    return data_uri(encode(draw(OTHER))[:-200])


HELLO = user("Hello"), said("Hello!")
IMAGE = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        (ballot(*HELLO, vote="sideways"), 400, "vote"),
        ({"model": MODEL, "messages": HELLO}, 400, "vote"),
        ({"model": MODEL, "vote": "up"}, 400, "messages"),
        (ballot(vote="up"), 400, "messages"),
        (ballot(*HELLO, model="no-such"), 404, "model"),
        (ballot(user("Hello")), 400, "messages"),
        (ballot(said("Hello!")), 400, "messages[0].role"),
        (ballot(user("Hello"), *HELLO), 400, "messages[1].role"),
        (ballot(*HELLO, {"role": "system", "content": "Now."}, said("Yes.")), 400, "messages[2].role"),
        (ballot({"role": "system", "content": "Now."}), 400, "messages"),
        (ballot(user("x " * (1 << 19)), said("!")), 400, "messages"),
        (ballot(user("Hello"), {"role": "assistant", "content": [image(GRID)]}), 400, "messages[1].content[0].type"),
        (ballot(user(image_part("data:image/png;base64,AAAA")), said("!")), 400, IMAGE),
        (ballot(user(image_part("http://10.0.0.1/x.png")), said("!")), 400, IMAGE),
        (ballot(user(image_part("file:///etc/passwd")), said("!")), 400, IMAGE),
        (ballot(user(image_part(large_png())), said("!")), 400, IMAGE),
        (ballot(user(image_part(cut_short())), said("!")), 400, IMAGE),
    ],
)
def test_what_is_no_vote_is_refused_and_leaves_nothing(polling: Polling, given: dict[str, Any], status: int, param: str) -> None:
    polling.vote(ballot(*HELLO))
    before = {path: path.stat().st_size for path in polling.folder.rglob("*")}
    answer = polling.vote(given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert {path: path.stat().st_size for path in polling.folder.rglob("*")} == before


def test_keys_and_their_limits_hold_for_votes(polling: Polling) -> None:
    assert httpx.post(f"{polling.server.url}/feedback", json=ballot(*HELLO)).status_code == 401
    assert polling.vote(ballot(*HELLO), "bob").json()["error"]["code"] == "model_not_found"
    assert polling.vote(ballot(*HELLO), "carol").status_code == 200
    assert polling.records()[-1]["key"] == "carol"
    assert polling.vote(ballot(*HELLO), "carol").json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx.get(f"{polling.server.url}/feedback", headers={"key": polling.keys["dave"]}).status_code == 405


def noise() -> bytes:
    """A PNG of about 0.7 MB that nobody has seen."""
    return encode(Image.frombytes("RGB", (500, 480), random.randbytes(500 * 480 * 3)))


def test_a_full_directory_takes_no_more(polling: Polling) -> None:
    """The bound is 1 MiB, and what there is so far is some kilobytes."""
    assert polling.vote(ballot(user(image_part(data_uri(noise()))), said("Noise."))).status_code == 200
    before = {path: path.stat().st_size for path in polling.folder.rglob("*")}
    refused = polling.vote(ballot(user(image_part(data_uri(noise()))), said("Noise.")))
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "feedback_full")
    assert {path: path.stat().st_size for path in polling.folder.rglob("*")} == before
    assert polling.vote(ballot(*HELLO)).status_code == 200


def test_a_directory_that_cannot_be_is_one_line_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("serve", "llava-demo", "--port", "58126", "--feedback-dir", tmp_path / "file")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert "feedback_dir" in ended.stderr


VOTING = """
import sys
from itertools import count
from pathlib import Path
from blake3 import blake3
from llava_gateway.types import ImageUrl, Message, Text
from llava_gateway.feedback.record import new_vote
from llava_gateway.feedback.store import Store
store = Store(Path(sys.argv[1]), 1 << 30)
for number in count():
    picture = f"{sys.argv[2]} {number}".encode() * 5000
    name = f"{blake3(picture).hexdigest()}.png"
    vote = new_vote("m", "up", None, [Message("user", (ImageUrl("x", "x"),)), Message("assistant", (Text("y" * 20000),))], [name])
    store.add(vote, {name: picture})
    print(vote.id, flush=True)
"""


def test_votes_that_were_answered_survive_a_kill(tmp_path: Path) -> None:
    """Two writers on one directory, killed in the middle, five times over."""
    answered: set[str] = set()
    for attempt in range(5):
        command = [sys.executable, "-c", VOTING, str(tmp_path)]
        writers = [subprocess.Popen([*command, f"{attempt} {which}"], stdout=subprocess.PIPE, text=True) for which in range(2)]
        for writer in writers:
            assert writer.stdout
            for _ in range(random.randint(1, 40)):
                answered.add(writer.stdout.readline().strip())
        for writer in writers:
            writer.kill()
        for writer in writers:
            answered |= set(writer.communicate()[0].split())
    assert len(answered) >= 10
    votes = [vote for vote in read(tmp_path) if vote]
    assert answered <= {vote.id for vote in votes}
    for vote in votes:
        (name,) = vote.image
        assert name == f"{blake3((tmp_path / 'images' / name).read_bytes()).hexdigest()}.png"
    Store(tmp_path, 1 << 30)
    assert not list((tmp_path / "images").glob(".*"))


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    store, log = Store(tmp_path, 1 << 20), tmp_path / "feedback.jsonl"
    first, torn, after = vote_on("1"), vote_on("2"), vote_on("3")
    store.add(first, {})
    whole = len(log.read_bytes())
    store.add(torn, {})
    both = log.read_bytes()
    for length in range(whole, len(both)):
        log.write_bytes(both[:length])
        store.add(after, {})
        kept = [vote.id for vote in read(tmp_path) if vote]
        assert kept == ([first.id, torn.id, after.id] if length == len(both) - 1 else [first.id, after.id]), length


FULL_DISK = """
import resource, sys
from pathlib import Path
from llava_gateway.types import Message, Text
from llava_gateway.feedback.record import new_vote
from llava_gateway.feedback.store import Store
def add(text):
    store.add(new_vote("m", "up", None, [Message("user", (Text(text),)), Message("assistant", (Text("!"),))], []), {})
store = Store(Path(sys.argv[1]), 1 << 20)
add("1")
resource.setrlimit(resource.RLIMIT_FSIZE, ((Path(sys.argv[1]) / "feedback.jsonl").stat().st_size + 50, resource.RLIM_INFINITY))
try:
    add("2")
except OSError:
    print("refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
add("3")
"""


def test_a_line_that_does_not_fit_the_disk_is_taken_back(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("refused\n", "")
    assert [vote and vote.conversations[0].value for vote in read(tmp_path)] == ["1", "3"]


def test_docs_say_what_every_field_is() -> None:
    for row in rows(FeedbackRequest):
        assert row in DOCS, row
