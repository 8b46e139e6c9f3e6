"""Keys: the file, what a running server knows of it, the command that writes it, and the limits."""

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import limits.aio.storage.memory
import pytest
from conftest import free_port
from hypothesis import example, given
from hypothesis import strategies as st

from llava_gateway.cli import keys as command
from llava_gateway.errors import Unavailable
from llava_gateway.keys import limits as key_limits
from llava_gateway.keys import store
from llava_gateway.keys.limits import Caller, RateLimited, RateLimits, duration
from llava_gateway.keys.store import Key, KeyFile, KeyFileError, Keys, digest, new_secret

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
def test_what_is_added_is_read(added: list[Key]) -> None:
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
        *[{"keys": [entry(requests_per_minute=limit)]} for limit in (0, -1, 1.5, "60", True, [])],
        {"keys": [entry(requests_per_min=60)]},
    ],
)
def test_anything_else_in_the_file_is_refused_in_a_line(path: Path, contents: object) -> None:
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
def test_no_contents_break_the_reader(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as written:
        Path(written.name).write_bytes(data)
        with pytest.raises(KeyFileError):
            KeyFile(Path(written.name)).read()


def test_only_its_owner_reads_the_file_and_nothing_lies_beside_it(file: KeyFile, path: Path) -> None:
    file.revoke("alice")
    file.add(BOB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]
    assert SECRET not in path.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_leaves_the_file_to_its_owner(file: KeyFile, path: Path) -> None:
    os.chown(path, 12345, 12345)
    file.add(BOB)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


def test_a_link_stays_one(file: KeyFile, path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    KeyFile(link).add(BOB)
    assert link.is_symlink()
    assert [key.name for key in file.read()] == ["alice", "bob"]


def test_a_write_that_fails_leaves_what_was_there(file: KeyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        file.add(BOB)
    assert file.read() == [ALICE]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_names_and_secrets_are_taken_once(file: KeyFile) -> None:
    for key in (Key("alice", BOB.digest), Key("bob", ALICE.digest)):
        with pytest.raises(KeyFileError):
            file.add(key)
    with pytest.raises(KeyFileError, match="bob"):
        file.revoke("bob")
    assert file.read() == [ALICE]


def add_some(path: Path, worker: int, together: "multiprocessing.synchronize.Barrier") -> None:
    together.wait(30)
    for number in range(12):
        KeyFile(path).add(Key(f"{worker}-{number}", digest(f"{worker}-{number}")))
        if number % 3 == 0:
            KeyFile(path).revoke(f"{worker}-{number}")


def test_processes_that_write_at_once_lose_nothing_and_a_reader_sees_whole_files(file: KeyFile, path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(5)
    workers = [context.Process(target=add_some, args=(path, worker, together)) for worker in range(4)]
    for worker in workers:
        worker.start()
    together.wait(30)
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


def test_new_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("llava-") and len(secret) == 6 + 43 for secret in made)


def test_a_key_does_not_show_its_digest() -> None:
    assert ALICE.digest not in repr(ALICE)


def test_plain_keys_have_names_and_no_limits() -> None:
    known = Keys(["first", "second"], None)
    assert known.any
    assert known.find("second") == Key("key-2", digest("second"))
    assert known.find("third") is None
    assert known.find("") is None
    assert known.names() == ["key-1", "key-2"]
    with pytest.raises(ValueError, match="empty"):
        Keys([""], None)


def test_whether_there_are_keys(path: Path) -> None:
    assert not Keys([], None).any
    path.write_text('{"keys": []}')
    assert Keys([], path).any
    assert Keys([], path).find(SECRET) is None


@given(st.text(st.characters()))
@example("\udc80")
def test_any_text_may_be_asked_for(secret: str) -> None:
    assert Keys([SECRET], None).find(secret) is None
    assert Keys([secret or "x"], None).find(secret or "x") == Key("key-1", digest(secret or "x"))


@pytest.mark.usefixtures("looks_each_time")
def test_changes_take_effect_without_a_restart(file: KeyFile, path: Path) -> None:
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


def test_the_file_is_looked_at_once_in_a_while(file: KeyFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_cannot_be_read_lets_nobody_in(
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
def test_a_file_that_is_missing_at_the_start_lets_nobody_in_until_it_is_there(path: Path) -> None:
    known = Keys([], path)
    with pytest.raises(Unavailable):
        known.find(SECRET)
    KeyFile(path).add(ALICE)
    assert known.find(SECRET) == ALICE


@pytest.mark.usefixtures("looks_each_time")
def test_the_command_makes_lists_and_revokes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_a_command_that_fails_says_so_in_a_line(
    file: KeyFile,
    path: Path,
    arguments: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAVA_KEYS_FILE", str(path))
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


def test_where_the_command_finds_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


def limited(**limits: int) -> Key:
    return Key("carol", digest("carol"), **limits)


@pytest.fixture
def clock() -> Iterator[SimpleNamespace]:
    with stopped_clock() as stopped:
        yield stopped


@contextmanager
def stopped_clock() -> Iterator[SimpleNamespace]:
    """What the counts in memory take for the time, in seconds; at first the beginning of a minute."""
    stopped = SimpleNamespace(now=60.0 * 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits.aio.storage.memory, "time", SimpleNamespace(time=lambda: stopped.now))
        yield stopped


async def refused(work: Awaitable[object]) -> RateLimited:
    with pytest.raises(RateLimited) as refusal:
        await work
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
    return refusal.value


def headers(holder: Caller | RateLimited) -> dict[str, str]:
    pairs = holder.headers() if isinstance(holder, Caller) else holder.headers
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in pairs}


def test_requests_per_minute(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(requests_per_minute=3)
        assert [headers(await rates.admit(key))["remaining-requests"] for _ in range(3)] == ["2", "1", "0"]
        refusal = await refused(rates.admit(key))
        assert refusal.message == "The key carol may make 3 requests per minute."
        assert headers(refusal) == {"limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m40s"}
        await rates.admit(Key("dave", digest("dave"), requests_per_minute=1))
        await rates.admit(Key("carol", digest("carol's new secret"), requests_per_minute=1))
        clock.now += refusal.retry_after or 0
        await rates.admit(key)

    asyncio.run(scenario())


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 90), st.integers(1, 60)), max_size=12),
    st.integers(1, 50),
)
@example(limit=1, before=[(19.0, 1)], cost=1)  # where floats come out a hair too early
@hypothesis.settings(deadline=None)
def test_retry_after_is_when_there_is_room_and_not_a_second_later(limit: int, before: list[tuple[float, int]], cost: int) -> None:
    async def scenario(clock: SimpleNamespace) -> None:
        rates, key = RateLimits(), limited(tokens_per_minute=limit)
        caller = await rates.admit(key)
        for pause, tokens in before:
            clock.now += pause
            await caller.book(tokens)
        try:
            await caller.charge(min(cost, limit))
        except RateLimited as refusal:
            assert refusal.retry_after
            now, clock.now = clock.now, clock.now + refusal.retry_after - 1.01
            if refusal.retry_after > 1:
                await refused(caller.charge(min(cost, limit)))
            clock.now = now + refusal.retry_after
            await caller.charge(min(cost, limit))

    with stopped_clock() as clock:
        asyncio.run(scenario(clock))


@pytest.mark.usefixtures("clock")
def test_tokens_per_minute() -> None:
    async def scenario() -> None:
        caller = await RateLimits().admit(limited(tokens_per_minute=1000))
        await caller.charge(600)
        refusal = await refused(caller.charge(500))
        assert refusal.message == "The key carol may use 1000 tokens per minute, and this prompt has 500."
        assert refusal.retry_after == 70
        assert headers(refusal)["remaining-tokens"] == headers(caller)["remaining-tokens"] == "400"
        await caller.charge(400)
        never = await refused(caller.charge(1001))
        assert never.message == "The key carol may use 1000 tokens per minute. A prompt of 1001 can never fit."
        assert never.retry_after is None

    asyncio.run(scenario())


def test_an_answer_takes_what_is_left_and_no_more(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(tokens_per_minute=100)
        caller = await rates.admit(key)
        await asyncio.gather(*(caller.book(7) for _ in range(10)))
        await caller.charge(10)
        assert headers(caller)["remaining-tokens"] == "20"
        await caller.book(0)
        await caller.book(5000)
        await caller.book(1)
        assert headers(await rates.admit(key))["remaining-tokens"] == "0"
        assert (await refused(caller.charge(1))).retry_after
        clock.now += 120
        await caller.charge(100)

    asyncio.run(scenario())


def test_requests_at_once(clock: SimpleNamespace) -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(concurrent=2, requests_per_minute=4)
        first, second = await rates.admit(key), await rates.admit(key)
        for _ in range(9):  # none of which is counted
            refusal = await refused(rates.admit(key))
            assert refusal.message == "The key carol may have 2 requests running at once."
            assert refusal.retry_after == 1
        await rates.admit(Key("dave", digest("dave"), concurrent=1))
        first.leave()
        first.leave()
        third = await rates.admit(key)
        await refused(rates.admit(key))
        second.leave()
        third.leave()
        (await rates.admit(key)).leave()
        for _ in range(3):  # whoever is refused by the minute leaves no place taken
            assert "per minute" in (await refused(rates.admit(key))).message
        clock.now += 120
        await rates.admit(key)
        await rates.admit(key)

    asyncio.run(scenario())


def test_a_client_that_leaves_while_it_is_counted_frees_its_place() -> None:
    async def scenario() -> None:
        rates, key = RateLimits(), limited(concurrent=1, requests_per_minute=9)
        leaving = asyncio.create_task(rates.admit(key))
        await asyncio.sleep(0)
        assert not leaving.done()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled()
        await rates.admit(key)

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [BOB, limited(concurrent=1)])
def test_a_key_without_limits_costs_nothing(key: Key) -> None:
    async def scenario() -> None:
        rates = RateLimits("redis://127.0.0.1:1")  # where nobody listens
        caller = await rates.admit(key)
        await caller.charge(10**9)
        await caller.book(10**9)
        assert caller.headers() == []
        caller.leave()
        await rates.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("clock")
def test_headers_are_openais() -> None:
    async def scenario() -> None:
        rates = RateLimits()
        caller = await rates.admit(limited(requests_per_minute=60, tokens_per_minute=1000))
        assert caller.headers()[3:] == [
            (b"x-ratelimit-limit-tokens", b"1000"),
            (b"x-ratelimit-remaining-tokens", b"1000"),
            (b"x-ratelimit-reset-tokens", b"0s"),
        ]
        await caller.charge(100)
        assert caller.headers() == [
            (b"x-ratelimit-limit-requests", b"60"),
            (b"x-ratelimit-remaining-requests", b"59"),
            (b"x-ratelimit-reset-requests", b"1m0s"),
            (b"x-ratelimit-limit-tokens", b"1000"),
            (b"x-ratelimit-remaining-tokens", b"900"),
            (b"x-ratelimit-reset-tokens", b"1m59.4s"),
        ]
        only_tokens = await rates.admit(Key("dave", digest("dave"), tokens_per_minute=1))
        assert [name for name, _ in only_tokens.headers()] == [name for name, _ in caller.headers()][3:]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.25, "250ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.999, "59.999s"),
        (360, "6m0s"),
        (86.4, "1m26.4s"),
    ],
)
def test_durations_are_openais(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_models_of_a_key() -> None:
    async def scenario() -> None:
        rates = RateLimits()
        all_of_them, one = await rates.admit(BOB), await rates.admit(ALICE)
        assert all_of_them.allows("anything")
        assert one.allows("llava-demo")
        assert not one.allows("llava")

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://:passw0rd@host", "redis", "redis://:passw0rd@host:port", "redis://:passw0rd@host:6379x/0"])
def test_a_wrong_storage_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"[Rr]edis") as refusal:
        RateLimits(url)
    assert "passw0rd" not in str(refusal.value)


def test_without_its_client_redis_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ValueError, match=re.escape("llava-gateway[redis]")):
        RateLimits("redis://localhost")


class Redis:
    """A real one, on a free port, that keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/1"

    def __enter__(self) -> "Redis":
        flags = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder))
        self.process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.02)
        raise AssertionError("redis-server does not listen")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    with Redis(tmp_path) as running:
        yield running


def test_gateways_that_share_a_redis_share_its_counts(redis: Redis) -> None:
    async def scenario() -> None:
        one, other, memory = RateLimits(redis.url), RateLimits(redis.url), RateLimits()
        key = limited(requests_per_minute=120, tokens_per_minute=1000)
        admitted = await asyncio.gather(*((one, other)[number % 2].admit(key) for number in range(200)), return_exceptions=True)
        assert sum(isinstance(caller, Caller) for caller in admitted) == 120
        assert all(isinstance(caller, (Caller, RateLimited)) for caller in admitted)
        refusal = await refused(other.admit(key))
        assert 1 <= (refusal.retry_after or 0) <= 120
        assert headers(refusal)["remaining-requests"] == "0"
        first, second = [caller for caller in admitted if isinstance(caller, Caller)][:2]
        await asyncio.gather(*((first, second)[number % 2].book(7) for number in range(100)))
        await first.charge(200)
        assert headers(first)["remaining-tokens"] == "100"
        await refused(second.charge(101))
        await second.book(5000)
        await refused(first.charge(1))
        await memory.admit(key)
        await one.close()
        await other.close()

    asyncio.run(scenario())


def test_a_window_in_redis_moves_on(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_limits, "MINUTE", 1)

    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(requests_per_minute=4)
        for _ in range(4):
            await rates.admit(key)
        refusal = await refused(rates.admit(key))
        await asyncio.sleep(refusal.retry_after or 0)
        await rates.admit(key)
        await rates.close()

    asyncio.run(scenario())


def test_without_redis_nobody_with_limits_gets_in(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    key = limited(requests_per_minute=60, tokens_per_minute=1000, concurrent=1)

    async def unavailable(work: Awaitable[object]) -> None:
        with pytest.raises(Unavailable) as refusal:
            await work
        assert (refusal.value.code, refusal.value.retry_after) == ("limits_unavailable", 5)
        assert "127.0.0.1" not in refusal.value.message

    async def scenario() -> None:
        rates = RateLimits(redis.url)
        caller = await rates.admit(key)
        redis.__exit__()
        start = time.monotonic()
        await unavailable(caller.charge(1))
        await caller.book(1)
        caller.leave()
        for _ in range(3):
            await unavailable(rates.admit(key))
        assert time.monotonic() - start < 1
        await rates.admit(BOB)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        redis.__enter__()
        back = await rates.admit(key)
        await back.charge(1)
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
        redis.__exit__()
        redis.__enter__()
        await back.charge(1)  # a Redis that came back while nobody asked was never gone
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
        redis.__exit__()
        await unavailable(back.charge(1))
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]
        await rates.close()

    asyncio.run(scenario())


def test_a_redis_that_is_silent_is_not_waited_for(redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(key_limits, "TIMEOUT", 0.3)

    async def scenario() -> None:
        rates, key = RateLimits(redis.url), limited(requests_per_minute=1000)
        await rates.admit(key)
        redis.process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        ended = await asyncio.gather(*(rates.admit(key) for _ in range(100)), return_exceptions=True)
        assert time.monotonic() - start < 1.5
        assert {type(end) for end in ended} == {Unavailable}
        assert len(caplog.records) == 1
        redis.process.send_signal(signal.SIGCONT)
        await rates.admit(key)
        await rates.close()

    asyncio.run(scenario())


def test_the_mode_of_the_file_is_kept(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add(Key("a", digest("a")))
    file.path.chmod(0o640)
    file.add(Key("b", digest("b")))
    assert file.path.stat().st_mode & 0o777 == 0o640


def test_a_secret_that_cannot_be_shown_is_not_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llava_gateway", "keys", "new", "alice", "--file", "keys.json"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert "not kept" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert KeyFile(tmp_path / "keys.json").read() == []
