"""Keys: the file that `llava-gateway keys` writes, and what a running server knows of it."""

import fcntl
import hashlib
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from llava_gateway.errors import Unavailable
from llava_gateway.files import read_file

log = logging.getLogger(__name__)

CHECK_INTERVAL = 1.0
"""Seconds between looks at whether the file has changed."""
MAX_BYTES = 16 << 20
"""Of a keys file: some 60,000 keys."""
UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls a field that is none of ours, in a model and in a dataclass."""

Limit = Annotated[int, Field(ge=1)] | None
Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, extra="forbid"))
class Key:
    """One client. Plain SHA-256 is enough: our secrets are 256 random bits, which nobody guesses however fast the hash is, and of a secret
    of the operator's own choosing the operator chooses the strength. ValidationError if a value is wrong."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = field(repr=False)
    """SHA-256 of the secret, in hex."""
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Empty: all."""
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    """Of prompts and answers together."""
    concurrent: Limit = None
    """Requests at once."""
    admin: bool = False
    """Whether it may change what is served."""
    created: str = ""
    """ISO 8601, UTC."""


class KeyFileError(Exception):
    """The file cannot be read or written, or not so. One line for the operator, with the path, without a secret or digest."""


class _Contents(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    keys: list[Key]


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    return "llava-" + secrets.token_urlsafe(32)


def first_fault(error: ValidationError) -> str:
    """One line. Shows no value and no name of an unknown field: either may be a secret in the wrong place."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = first["loc"][:-1] if first["type"] in UNKNOWN_FIELD else first["loc"]
    said = "There is an unknown field" if first["type"] in UNKNOWN_FIELD else first["msg"]
    return ": ".join([".".join(map(str, where)), said]) if where else said


class KeyFile:
    """JSON, `{"keys": [{"name": ..., "digest": ...}, ...]}`. Replaced whole, so that a reader sees all of it or all of its successor."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Key]:
        """Raises KeyFileError."""
        try:
            keys = _Contents.model_validate_json(read_file(self.path, MAX_BYTES)).keys
        except OSError as error:
            raise KeyFileError(f"{self.path}: {error.strerror}") from error
        except ValidationError as error:
            raise KeyFileError(f"{self.path}: {first_fault(error)}") from None  # whose text shows values
        names, digests = set(), set()
        for key in keys:
            if key.name in names or key.digest in digests:
                raise KeyFileError(f"{self.path}: the name of the key {key.name}, or its secret, is there twice")
            names.add(key.name)
            digests.add(key.digest)
        return keys

    def add(self, key: Key) -> None:
        """Creates the file if there is none. KeyFileError if the name or the secret is taken."""
        with self._writing() as path:
            keys = self.read() if path.exists() else []
            if any(key.name == other.name or key.digest == other.digest for other in keys):
                raise KeyFileError(f"{self.path}: there is a key {key.name} already, or one with its secret")
            _replace(path, [*keys, key])

    def revoke(self, name: str) -> None:
        """KeyFileError if there is no such key."""
        with self._writing() as path:
            keys = self.read()
            kept = [key for key in keys if key.name != name]
            if len(kept) == len(keys):
                raise KeyFileError(f"{self.path}: there is no key {name!r}")
            _replace(path, kept)

    def signature(self) -> Signature | None:
        """Differs after every change, of permissions too. None if the file cannot be looked at."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """The file behind all links, held against other writers."""
        try:
            path = self.path.resolve()
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield path
            finally:
                os.close(lock)
        except OSError as error:
            raise KeyFileError(f"{self.path}: {error.strerror}") from error


def _replace(path: Path, keys: list[Key]) -> None:
    """With the mode and the owner that the file has: root may add a key to what another user's server reads. A new file's mode is 0600."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                found = path.stat()
                os.fchown(descriptor, found.st_uid, found.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
            file.write(_Contents(keys=keys).model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Keys:
    """What a running server knows: secrets given by flag or environment, which have no limits, and a file, whose changes take effect
    within CHECK_INTERVAL. Once that cannot be read, none of its keys is good. Used from one event loop."""

    def __init__(self, plain: Sequence[str], path: Path | None) -> None:
        if "" in plain:
            raise ValueError("a key must not be empty")
        self._plain = {digest(secret): Key(f"key-{number}", digest(secret)) for number, secret in enumerate(plain, 1)}
        self._file = KeyFile(path) if path else None
        self._filed: dict[str, Key] | None = {}
        """By digest; None if the file cannot be read."""
        self._signature: Signature | None = None
        self._logged: tuple[Signature | None, str] | None = None
        self._look_at = 0.0

    @property
    def any(self) -> bool:
        """Whether keys are configured at all, be it an empty file."""
        return bool(self._plain) or self._file is not None

    def find(self, secret: str) -> Key | None:
        """Hashes and looks up, which takes as long for a wrong secret as for a right one, whatever of it is right. Raises Unavailable."""
        hashed = digest(secret)
        if hashed in self._plain:
            return self._plain[hashed]
        self._look()
        if self._filed is None:
            raise Unavailable("The server cannot read its keys.", code="keys_unreadable", retry_after=10)
        return self._filed.get(hashed)

    def names(self) -> list[str]:
        """Those of a file that cannot be read are not among them."""
        self._look()
        return [key.name for key in (*self._plain.values(), *(self._filed or {}).values())]

    def _look(self) -> None:
        if self._file is None or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + CHECK_INTERVAL
        signature = self._file.signature()
        if signature == self._signature and signature and self._filed is not None:
            return
        self._signature = signature
        try:
            self._filed = {key.digest: key for key in self._file.read()}
        except KeyFileError as error:
            self._filed = None
            if self._logged != (signature, str(error)):
                self._logged = (signature, str(error))
                log.error("all keys of the file are refused: %s", error)
        else:
            self._logged = None
            log.info("%d keys in %s", len(self._filed), self._file.path)
