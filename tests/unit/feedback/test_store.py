"""The store of votes: no vote that was answered is lost, and a torn line costs only itself."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from helpers.commands import run, vote_on
from helpers.documentation import rows
from helpers.server import ROOT

from llava_gateway.api.feedback import FeedbackRequest
from llava_gateway.feedback.store import Store, read

DOCS = (ROOT / "docs" / "feedback.md").read_text()


def test_unusable_feedback_directory_is_refused_in_one_line(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_answered_votes_survive_a_kill(tmp_path: Path) -> None:
    """Two writers share a directory and are killed, five times."""
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


def test_torn_line_costs_only_its_own_vote(tmp_path: Path) -> None:
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


def test_line_cut_by_a_full_disk_is_removed(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("refused\n", "")
    assert [vote and vote.conversations[0].value for vote in read(tmp_path)] == ["1", "3"]


def test_documentation_describes_every_field() -> None:
    for row in rows(FeedbackRequest):
        assert row in DOCS, row
