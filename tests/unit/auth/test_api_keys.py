"""Keys: the file, what a running server knows of it, and the command that writes it."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_gateway.auth import api_keys as store
from llava_gateway.auth.api_keys import Key, KeyFile, KeyFileError, Keys, digest, new_secret
from llava_gateway.cli import keys as command
from llava_gateway.errors import Unavailable

SECRET = "llava-a-secret-that-nobody-may-see"
ALICE = Key("alice", digest(SECRET), ("llava-demo",), requests_per_minute=60, created="2025-01-31T12:00:00Z")
BOB = Key("bob", digest("llava-bob"))

some_limit = st.none() | st.integers(1, 10**12)
some_key = st.builds(
    Key,
    name=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
    models=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=3).map(tuple),
    requests_per_minute=some_limit,
    tokens_per_minute=some_limit,
    concurrent=some_limit,
    created=st.just("") | st.datetimes().map(lambda when: when.isoformat()),
)
someones_keys = st.lists(some_key, max_size=5, unique_by=(lambda key: key.name, lambda key: key.digest))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def file(path: Path) -> KeyFile:
    file = KeyFile(path)
    file.add(ALICE)
    return file


@pytest.fixture
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHECK_INTERVAL", 0.0)


def entry(**changed: object) -> dict[str, object]:
    return {"name": "alice", "digest": digest(SECRET)} | changed


@given(someones_keys)
@hypothesis.settings(max_examples=40, deadline=None)
def test_added_key_is_read_back(added: list[Key]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = KeyFile(Path(folder, "keys.json"))
        for key in added:
            file.add(key)
        assert (file.read() if added else []) == added
        for key in added[::2]:
            file.revoke(key.name)
        assert (file.read() if added else []) == added[1::2]


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        [],
        {},
        {"keys": {}},
        {"keys": None},
        {"keys": [], "more": 1},
        {"keys": [[]]},
        {"keys": [{}]},
        {"keys": [{"name": "alice"}]},
        {"keys": [entry(), entry(digest=BOB.digest)]},
        {"keys": [entry(), entry(name="bob")]},
        {"keys": [{SECRET: {}}]},
        {"keys": {SECRET: {}}},
        {SECRET: [], "keys": []},
        {"keys": [entry(digest=SECRET)]},
        {"keys": [entry(digest=digest(SECRET).upper())]},
        {"keys": [entry(digest=digest(SECRET) + "\n")]},
        *[{"keys": [entry(name=name)]} for name in ("", "a" * 65, "a b", "a/b", "a\n", "ä", 1, None)],
        *[{"keys": [entry(models=models)]} for models in ("llava", [""], [1], None)],
        *[{"keys": [entry(requests_per_minute=limit)]} for limit in [0, -1, 1.5, "60", True, list[int]()]],
        {"keys": [entry(requests_per_min=60)]},
    ],
)
def test_invalid_keys_file_is_refused_in_one_line(path: Path, contents: object) -> None:
    data = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
    path.write_bytes(data)
    for use in (lambda: KeyFile(path).read(), lambda: KeyFile(path).add(BOB), lambda: KeyFile(path).revoke("alice")):
        with pytest.raises(KeyFileError) as refusal:
            use()
        said = str(refusal.value)
        assert said.startswith(str(path))
        assert len(said.splitlines()) == 1
        assert SECRET not in said
        assert digest(SECRET)[:8] not in said.lower()
        assert SECRET not in "".join(traceback.format_exception(refusal.value))
    assert path.read_bytes() == data


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_content_crashes_the_reader(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as written:
        Path(written.name).write_bytes(data)
        with pytest.raises(KeyFileError):
            KeyFile(Path(written.name)).read()


def test_keys_file_is_private_and_leaves_no_temporary_file(file: KeyFile, path: Path) -> None:
    file.revoke("alice")
    file.add(BOB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]
    assert SECRET not in path.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_write_by_root_keeps_the_owner(file: KeyFile, path: Path) -> None:
    os.chown(path, 12345, 12345)
    file.add(BOB)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


def test_write_keeps_a_symbolic_link(file: KeyFile, path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    KeyFile(link).add(BOB)
    assert link.is_symlink()
    assert [key.name for key in file.read()] == ["alice", "bob"]


def test_failed_write_keeps_the_old_file(file: KeyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        file.add(BOB)
    assert file.read() == [ALICE]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_name_or_secret_cannot_be_used_twice(file: KeyFile) -> None:
    for key in (Key("alice", BOB.digest), Key("bob", ALICE.digest)):
        with pytest.raises(KeyFileError):
            file.add(key)
    with pytest.raises(KeyFileError, match="bob"):
        file.revoke("bob")
    assert file.read() == [ALICE]


def add_some(path: Path, worker: int, gather_limited: "multiprocessing.synchronize.Barrier") -> None:
    gather_limited.wait(30)
    for number in range(12):
        KeyFile(path).add(Key(f"{worker}-{number}", digest(f"{worker}-{number}")))
        if number % 3 == 0:
            KeyFile(path).revoke(f"{worker}-{number}")


def test_concurrent_writers_lose_no_key(file: KeyFile, path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gather_limited = context.Barrier(5)
    workers = [context.Process(target=add_some, args=(path, worker, gather_limited)) for worker in range(4)]
    for worker in workers:
        worker.start()
    gather_limited.wait(30)
    reads = 0
    while any(worker.is_alive() for worker in workers):
        assert file.read()[0] == ALICE
        reads += 1
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert reads > 4
    assert {key.name for key in file.read()} == {
        "alice",
        *(f"{worker}-{number}" for worker in range(4) for number in range(12) if number % 3),
    }


def test_new_secrets_are_long_and_unique() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("llava-") and len(secret) == 6 + 43 for secret in made)


def test_repr_of_a_key_hides_the_digest() -> None:
    assert ALICE.digest not in repr(ALICE)


def test_key_from_the_settings_has_a_name_and_no_limits() -> None:
    known = Keys(["first", "second"], None)
    assert known.any
    assert known.find("second") == Key("key-2", digest("second"))
    assert known.find("third") is None
    assert known.find("") is None
    assert known.names() == ["key-1", "key-2"]
    with pytest.raises(ValueError, match="empty"):
        Keys([""], None)


def test_presence_of_keys_is_known(path: Path) -> None:
    assert not Keys([], None).any
    path.write_text('{"keys": []}')
    assert Keys([], path).any
    assert Keys([], path).find(SECRET) is None


@given(st.text(st.characters()))
@example("\udc80")
def test_any_text_is_a_possible_secret(secret: str) -> None:
    assert Keys([SECRET], None).find(secret) is None
    assert Keys([secret or "x"], None).find(secret or "x") == Key("key-1", digest(secret or "x"))


@pytest.mark.usefixtures("looks_each_time")
def test_changed_keys_file_takes_effect_without_a_restart(file: KeyFile, path: Path) -> None:
    known = Keys(["plain"], path)
    assert known.find(SECRET) == ALICE
    file.add(BOB)
    assert known.find("llava-bob") == BOB
    assert known.names() == ["key-1", "alice", "bob"]
    file.revoke("alice")
    assert known.find(SECRET) is None
    assert known.find("llava-bob") == BOB
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text().replace('"bob"', '"rob"'))
    os.utime(path, ns=times)  # as `cp -p` and rsync do: neither size nor time of change tells
    found = known.find("llava-bob")
    assert found
    assert found.name == "rob"


def test_keys_file_is_not_read_for_each_request(file: KeyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHECK_INTERVAL", 3600.0)
    known = Keys([], path)
    assert known.find(SECRET) == ALICE
    path.unlink()
    assert known.find(SECRET) == ALICE


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.usefixtures("looks_each_time")
@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, unreadable, lambda path: path.write_text('{"keys": [{"'), lambda path: path.write_text(path.read_text() * 2)],
    ids=["gone", "unreadable", "torn", "corrupt"],
)
def test_unreadable_keys_file_lets_nobody_in(
    file: KeyFile, path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    known = Keys(["plain"], path)
    good = path.read_bytes()
    assert known.find(SECRET) == ALICE
    for changes in (1, 2):
        spoil(path)
        for secret in (SECRET, "llava-bob", "", SECRET):
            with pytest.raises(Unavailable) as refusal:
                known.find(secret)
        assert (refusal.value.code, refusal.value.retry_after, refusal.value.status) == ("keys_unreadable", 10, 503)
        assert str(path) not in str(refusal.value)
        assert known.find("plain") == Key("key-1", digest("plain"))
        assert known.names() == ["key-1"]
        assert known.any
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == changes
        assert str(path) in errors[-1].getMessage()
        if path.is_dir():
            path.rmdir()
        path.write_bytes(good)
        assert known.find(SECRET) == ALICE
    assert SECRET not in caplog.text
    assert ALICE.digest not in caplog.text


@pytest.mark.usefixtures("looks_each_time")
def test_missing_keys_file_lets_nobody_in_until_it_exists(path: Path) -> None:
    known = Keys([], path)
    with pytest.raises(Unavailable):
        known.find(SECRET)
    KeyFile(path).add(ALICE)
    assert known.find(SECRET) == ALICE


@pytest.mark.usefixtures("looks_each_time")
def test_keys_command_creates_lists_and_revokes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["new", "alice", "--models", "a, b", "--requests-per-minute", "60", "--tokens-per-minute", "9000", "--concurrent", "2"]
    assert command.main([*made, "--file", str(path)]) == 0
    said = capsys.readouterr()
    secret = said.out.removesuffix("\n")
    assert secret.isprintable()
    assert " " not in secret
    assert "once" in said.err
    assert secret not in said.err
    assert secret not in path.read_text()
    assert command.main(["new", "bob", "--file", str(path)]) == 0
    capsys.readouterr()

    known = Keys([], path)
    found = known.find(secret)
    assert found
    assert (found.name, found.models) == ("alice", ("a", "b"))
    assert (found.requests_per_minute, found.tokens_per_minute, found.concurrent) == (60, 9000, 2)

    assert command.main(["list", "--file", str(path)]) == 0
    listed = capsys.readouterr().out
    head, alice, bob = listed.splitlines()
    assert alice.split() == ["alice", "a,b", "60", "9000", "2", "-", found.created]
    assert bob.split()[:5] == ["bob", "all", "-", "-", "-"]
    assert head.index("CREATED") == alice.index(found.created) == bob.index("20")
    assert secret not in listed
    assert not any(key.digest[:8] in listed for key in KeyFile(path).read())

    assert command.main(["revoke", "alice", "--file", str(path)]) == 0
    assert known.find(secret) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "required"),
        (["fly"], 2, "fly"),
        (["new"], 2, "NAME"),
        (["new", "a b"], 2, "name"),
        (["new", "bob", "--concurrent", "0"], 2, "concurrent"),
        (["new", "bob", "--requests-per-minute", "many"], 2, "many"),
        (["new", "bob", "--nothing"], 2, "--nothing"),
        (["new", "alice"], 1, "alice"),
        (["revoke", "bob"], 1, "bob"),
        (["list", "--file", "/nowhere/keys.json"], 1, "/nowhere/keys.json"),
        (["new", "bob", "--file", "/nowhere/keys.json"], 1, "/nowhere/keys.json"),
    ],
)
def test_failing_keys_command_prints_one_line(
    file: KeyFile,
    path: Path,
    arguments: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAVA_KEYS_FILE", str(path))
    ended: object
    try:
        ended = command.main(arguments)
    except SystemExit as exit_:
        ended = exit_.code
    heard = capsys.readouterr()
    assert (ended, heard.out) == (status, "")
    assert len(heard.err.splitlines()) == 1
    assert said in heard.err
    assert ALICE.digest not in heard.err
    assert file.read() == [ALICE]


def test_keys_command_finds_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAVA_KEYS_FILE", raising=False)
    with pytest.raises(SystemExit) as none:
        command.main(["list"])
    assert none.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    Path("llava-gateway.toml").write_text('keys_file = "toml.json"')
    assert command.main(["new", "alice"]) == 0
    monkeypatch.setenv("LLAVA_KEYS_FILE", "environment.json")
    assert command.main(["new", "bob"]) == 0
    assert command.main(["new", "carol", "--file", "flag.json"]) == 0
    names = {path: KeyFile(Path(path)).read()[0].name for path in ("toml.json", "environment.json", "flag.json")}
    assert names == {"toml.json": "alice", "environment.json": "bob", "flag.json": "carol"}


def test_write_keeps_the_file_mode(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add(Key("a", digest("a")))
    file.path.chmod(0o640)
    file.add(Key("b", digest("b")))
    assert file.path.stat().st_mode & 0o777 == 0o640


def test_key_is_not_stored_if_its_secret_cannot_be_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llava_gateway", "keys", "new", "alice", "--file", "keys.json"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert "not kept" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert KeyFile(tmp_path / "keys.json").read() == []
