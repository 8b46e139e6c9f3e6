"""The export of votes: LLaVA's trainer can load the dataset, and the export destroys nothing."""

import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import odd_images
from helpers.commands import keep, run, samples
from helpers.origin import GRID as ORIGIN_GRID
from helpers.server import ROOT
from PIL import Image

from llava_gateway.demo.images import COLORS, draw, encode
from llava_gateway.feedback.store import Store, read

pytestmark = pytest.mark.slow

GRID = ("red", "blue", "green", "white")
OTHER = ("yellow", "black", "orange", "purple")
DOCS = (ROOT / "docs" / "feedback.md").read_text()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes", 1 << 30)


def export(folder: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    ended = run("export-dataset", folder / "votes", folder / "dataset", *flags)
    assert (ended.returncode, ended.stderr) == (0, "")
    return samples(folder / "dataset"), ended.stdout


def test_an_earlier_vote_is_replaced_by_the_last(store: Store, tmp_path: Path) -> None:
    keep(store, text="withdrawn", key="alice")
    keep(store, text="withdrawn", key="alice", vote="down")
    keep(store, text="changed", vote="flag")
    ids = {keep(store, text="changed").id, keep(store, text="withdrawn", key="bob").id, keep(store, text="changed", model="n").id}
    keep(store, text="changed", answer="Another answer.", vote="down")
    assert {sample["id"] for sample in export(tmp_path)[0]} == ids
    assert len(export(tmp_path, "--votes", "down,flag", "--overwrite")[0]) == 2
    assert len(export(tmp_path, "--models", "n", "--overwrite")[0]) == 1


def test_a_placeholder_in_a_text_does_not_become_an_image(store: Store, tmp_path: Path) -> None:
    for text in ("<image>", "a <image>\n<image> b", "<im<image>age>", "<image>\n"):
        keep(store, encode(draw(GRID)), text=text, answer=text)
        keep(store, text=text, answer=text)
    assert len(export(tmp_path)[0]) == 8


def test_a_sample_that_the_trainer_cannot_load_is_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    images = encode(draw(GRID)), encode(draw(OTHER))
    one, several = keep(store, images[0]), keep(store, *images)
    keep(store, text="")
    keep(store, answer=" ")
    gone = keep(store, encode(draw(ORIGIN_GRID)))
    (tmp_path / "votes" / "images" / gone.image[0]).unlink()
    with (tmp_path / "votes" / "feedback.jsonl").open("a") as log:
        log.write('{"id": "torn\n')
    found, told = export(tmp_path)
    assert [sample["id"] for sample in found] == [one.id]
    assert told.startswith(f"conversations: {len(sides(tmp_path / 'dataset')[0])} to train")
    assert "images: 1;" in told
    for reason in ("1 with several images", "2 with an empty turn", "1 with an image that is missing", "1 broken lines"):
        assert reason in told
    found, _ = export(tmp_path, "--several-pictures", "--overwrite")
    assert [sample["image"] for sample in found if sample["id"] == several.id] == [list(several.image)]


def test_the_trainer_finds_every_image_in_its_image_folder(store: Store, tmp_path: Path) -> None:
    """LLaVA's `LazySupervisedDataset` opens `os.path.join(image_folder, sample["image"])`; `samples` opens it, too."""
    shown = keep(store, encode(draw(GRID)), text="What is it?")
    plain = keep(store, text="Hello")
    found = {sample["id"]: sample for sample in export(tmp_path)[0]}
    assert found[shown.id] == {
        "id": shown.id,
        "image": shown.image[0],
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Hello!"}],
    }
    assert "image" not in found[plain.id], "the trainer takes any sample with the key for one with an image"
    assert [path.name for path in (tmp_path / "dataset" / "images").iterdir()] == list(shown.image)


def test_the_trainer_does_not_see_other_pixels_than_the_model(store: Store, tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, deep, clear, plain = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    upright.save(turned, "JPEG", exif=exif)
    upright.save(plain, "JPEG")
    Image.new("I;16", (8, 8), 0x8080).save(deep, "PNG")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    files = {"turned": turned, "deep": deep, "clear": clear, "plain": plain}
    ids = {keep(store, file.getvalue(), text=name).id: name for name, file in files.items()}
    seen = {}
    for sample in export(tmp_path)[0]:
        with Image.open(tmp_path / "dataset" / "images" / sample["image"]) as opened:
            seen[ids[sample["id"]]] = (opened.size, opened.convert("RGB").getpixel((0, 0)), opened.format)
    assert seen["turned"][0] == (20, 40)
    assert seen["deep"] == ((8, 8), (128, 128, 128), "PNG")
    assert seen["clear"] == ((8, 8), (255, 255, 255), "PNG")
    assert seen["plain"][2] == "JPEG"


def test_a_file_that_a_trainer_cannot_read_is_converted(store: Store, tmp_path: Path) -> None:
    names = ("profile with a wrong checksum.png", "short profile.jpg", "no end baseline.jpg", "XMP that turns.jpg")
    ids = {keep(store, odd_images.ALL[name][0], text=name).id: name for name in names}
    formats = {}
    for sample in export(tmp_path)[0]:
        with Image.open(tmp_path / "dataset" / "images" / sample["image"]) as opened:
            assert opened.convert("RGB").getpixel((90, 90)) == pytest.approx(COLORS["orange"], abs=4)
            formats[ids[sample["id"]]] = opened.format
    assert formats == dict.fromkeys(names[:3], "PNG") | {"XMP that turns.jpg": "JPEG"}


def sides(dataset: Path) -> tuple[set[str], set[str]]:
    train, val = ({sample["id"] for sample in json.loads((dataset / f"annotations_{side}.json").read_text())} for side in ("train", "val"))
    return train, val


def test_training_and_validation_share_no_image_and_stay_the_same(store: Store, tmp_path: Path) -> None:
    for number in range(60):
        image = encode(Image.new("RGB", (4, 4), (number, 0, 0)))
        keep(store, image, text="What colour?")
        keep(store, image, text="How large?")
    export(tmp_path, "--val-fraction", "0.3")
    train, val = sides(tmp_path / "dataset")
    assert 10 <= len(val) <= 62
    images = [{vote.image[0] for vote in read(tmp_path / "votes") if vote and vote.id in side} for side in (train, val)]
    assert not images[0] & images[1]
    keep(store, text="One more.")
    export(tmp_path, "--val-fraction", "0.3", "--overwrite")
    later = sides(tmp_path / "dataset")
    assert train <= later[0]
    assert val <= later[1]
    export(tmp_path, "--val-fraction", "0.3", "--seed", "1", "--overwrite")
    assert not val <= sides(tmp_path / "dataset")[1]
    export(tmp_path, "--val-fraction", "0", "--overwrite")
    assert sides(tmp_path / "dataset")[1] == set()


def test_an_export_does_not_overwrite_other_files(store: Store, tmp_path: Path) -> None:
    votes, dataset = tmp_path / "votes", tmp_path / "dataset"
    for arguments, status, told in (
        ((votes, dataset), 1, "nothing to export"),
        ((tmp_path / "nowhere", dataset), 1, "nowhere"),
        ((votes, dataset, "--votes", "sideways"), 2, "sideways"),
        ((votes, dataset, "--val-fraction", "2"), 2, "--val-fraction"),
    ):
        ended = run("export-dataset", *arguments)
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (status, "", 1)
        assert told in ended.stderr
    assert list(tmp_path.iterdir()) == [votes]
    keep(store)
    export(tmp_path)
    again = run("export-dataset", votes, dataset)
    assert (again.returncode, "--overwrite" in again.stderr) == (1, True)
    (dataset / "thesis.txt").touch()
    assert run("export-dataset", votes, dataset, "--overwrite").returncode == 1
    assert run("export-dataset", votes, votes, "--overwrite").returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "votes"]
    assert (dataset / "thesis.txt").exists()


def test_the_script_in_the_documentation_deletes_only_one_key(store: Store, tmp_path: Path) -> None:
    kept = keep(store, encode(draw(GRID)), key="bob")
    keep(store, encode(draw(OTHER)), key="alice")
    (script,) = (block for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) if "alice" in block)
    subprocess.run(["bash", "-u"], input=script, text=True, cwd=tmp_path, check=True)
    assert [vote and vote.id for vote in read(tmp_path / "votes")] == [kept.id]
    assert [path.name for path in (tmp_path / "votes" / "images").iterdir()] == list(kept.image)
