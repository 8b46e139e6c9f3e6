"""API keys: the file that `llava-gateway keys` writes, and the keys of a running server."""

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
"""Seconds between two checks whether the file has changed."""
MAX_BYTES = 16 << 20
"""The upper bound of a keys file, in bytes: about 60,000 keys."""
UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's error types for an unknown field, in a model and in a dataclass."""

Limit = Annotated[int, Field(ge=1)] | None
Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, extra="forbid"))
class Key:
    """An API key: its name, the digest of its secret, and its limits. Raises pydantic's ValidationError for an invalid value.

    A plain SHA-256 is enough. Our secrets are 256 random bits, which cannot be guessed even with a fast hash. An operator who chooses a
    secret chooses its strength.

        Key("alice", digest(secret), requests_per_minute=60, tokens_per_minute=100_000)
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = field(repr=False)
    """The SHA-256 of the secret, as 64 hexadecimal digits."""
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The names of the models that the key may use. Empty: all."""
    requests_per_minute: Limit = None
    """None, here and below: no limit."""
    tokens_per_minute: Limit = None
    """Tokens of prompts and answers together."""
    concurrent: Limit = None
    """The upper bound of requests at the same time."""
    admin: bool = False
    """Whether the key may load and unload LoRA adapters."""
    created: str = ""
    """The time of creation, in ISO 8601 and UTC."""


class KeyFileError(Exception):
    """The keys file cannot be read or changed.

    The message is one line for the operator. It has the file's path, and never a secret or a digest.
    """


class _Contents(BaseModel):
    """The JSON of a keys file."""

    model_config = ConfigDict(strict=True, extra="forbid")
    keys: list[Key]


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret, as 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """Return a new secret: `llava-` and 256 random bits in URL-safe base64."""
    return "llava-" + secrets.token_urlsafe(32)


def first_fault(error: ValidationError) -> str:
    """Return the first error of a ValidationError as one line.

    The line shows no value, and no name of an unknown field: either may be a secret in the wrong place.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = first["loc"][:-1] if first["type"] in UNKNOWN_FIELD else first["loc"]
    message = "There is an unknown field" if first["type"] in UNKNOWN_FIELD else first["msg"]
    return ": ".join([".".join(map(str, location)), message]) if location else message


class KeyFile:
    """A JSON file of keys: `{"keys": [{"name": "alice", "digest": "...", "requests_per_minute": 60}]}`.

    A change replaces the whole file, so that a reader never sees a half-written one. A lock file excludes simultaneous changes.

        KeyFile(Path("keys.json")).add(Key("alice", digest(secret)))
    """

    def __init__(self, path: Path) -> None:
        """`path`: may be a symbolic link, whose target is replaced then. The file need not exist yet."""
        self.path = path

    def read(self) -> list[Key]:
        """Return the keys in the file. Raises KeyFileError."""
        try:
            keys = _Contents.model_validate_json(read_file(self.path, MAX_BYTES)).keys
        except OSError as error:
            raise KeyFileError(f"{self.path}: {error.strerror}") from error
        except ValidationError as error:
            raise KeyFileError(f"{self.path}: {first_fault(error)}") from None  # its message shows values
        names, digests = set(), set()
        for key in keys:
            if key.name in names or key.digest in digests:
                raise KeyFileError(f"{self.path}: the key {key.name} is in the file twice, by its name or by its secret")
            names.add(key.name)
            digests.add(key.digest)
        return keys

    def add(self, key: Key) -> None:
        """Add a key, and create the file if there is none. Raises KeyFileError if the file has the key's name or secret already."""
        with self._writing() as path:
            keys = self.read() if path.exists() else []
            if any(key.name == other.name or key.digest == other.digest for other in keys):
                raise KeyFileError(f"{self.path}: the file has a key with the name {key.name} or with its secret already")
            _replace(path, [*keys, key])

    def revoke(self, name: str) -> None:
        """Remove the key of this name. Raises KeyFileError if there is none."""
        with self._writing() as path:
            keys = self.read()
            remaining = [key for key in keys if key.name != name]
            if len(remaining) == len(keys):
                raise KeyFileError(f"{self.path}: there is no key {name!r}")
            _replace(path, remaining)

    def signature(self) -> Signature | None:
        """Return a value that differs after every change of the file or its permissions. None if the file cannot be inspected."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """Yield the path with all links resolved. Other writers wait until the block ends. Raises KeyFileError for any OSError within."""
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
    """Replace the file at once, with the mode and the owner of the old file. A new file has the mode 0600.

    So root can add a key to a file that another user's server reads.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                old = path.stat()
                os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            file.write(_Contents(keys=keys).model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Keys:
    """The keys of a running server: secrets from the setting `api_keys`, which have no limits, and the keys of a file.

    Changes of the file take effect within CHECK_INTERVAL seconds. While the file cannot be read, none of its keys is accepted. Used from
    one event loop.
    """

    def __init__(self, secret_values: Sequence[str], path: Path | None) -> None:
        """`secret_values`: get the names key-1, key-2 and so on. `path`: the keys file. Raises ValueError for an empty secret."""
        if "" in secret_values:
            raise ValueError("an API key must not be empty")
        self._setting_keys = {digest(secret): Key(f"key-{number}", digest(secret)) for number, secret in enumerate(secret_values, 1)}
        self._file = KeyFile(path) if path else None
        self._file_keys: dict[str, Key] | None = {}
        """The keys of the file by digest. None if the file cannot be read."""
        self._signature: Signature | None = None
        self._logged: tuple[Signature | None, str] | None = None
        self._next_check = 0.0

    @property
    def any(self) -> bool:
        """Whether keys are configured. An empty keys file counts, too."""
        return bool(self._setting_keys) or self._file is not None

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, or None. Raises Unavailable if the file cannot be read.

        The digest is looked up, so the time does not depend on how much of a wrong secret is right.
        """
        hashed = digest(secret)
        if hashed in self._setting_keys:
            return self._setting_keys[hashed]
        self._reload_if_changed()
        if self._file_keys is None:
            raise Unavailable("The server cannot read its API keys.", code="keys_unreadable", retry_after=10)
        return self._file_keys.get(hashed)

    def names(self) -> list[str]:
        """Return the names of all keys, without the keys of a file that cannot be read."""
        self._reload_if_changed()
        return [key.name for key in (*self._setting_keys.values(), *(self._file_keys or {}).values())]

    def _reload_if_changed(self) -> None:
        if self._file is None or time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_INTERVAL
        signature = self._file.signature()
        if signature == self._signature and signature and self._file_keys is not None:
            return
        self._signature = signature
        try:
            self._file_keys = {key.digest: key for key in self._file.read()}
        except KeyFileError as error:
            self._file_keys = None
            if self._logged != (signature, str(error)):
                self._logged = (signature, str(error))
                log.error("All keys of the keys file are refused: %s", error)
        else:
            self._logged = None
            log.info("%d API keys in %s", len(self._file_keys), self._file.path)
