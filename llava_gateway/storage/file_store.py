"""Files that clients upload once and name in their requests. Each file belongs to an API key, and expires."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from llava_gateway.settings import Settings
from llava_gateway.storage.object_store import create_object_store

DESCRIPTION = "description/"
"""Begins the id of a value that is the description of a file. The content has the file's id."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The description of a file."""

    id: str
    filename: str
    purpose: str
    bytes: int
    media_type: str
    created_at: int
    """In seconds since 1970."""
    expires_at: int


class FileStore:
    """The files of API keys. `owner`: the name of the key; empty if the server asks for no key. All methods raise Unavailable."""

    def __init__(self, settings: Settings) -> None:
        """Create the store in the place that the setting `state` names. Raises ValueError."""
        self._ttl = settings.files_ttl
        self._values = create_object_store(
            settings.state,
            "files",
            max_bytes=settings.files_mb << 20,
            max_bytes_per_owner=settings.files_mb_per_key << 20,
            ttl=settings.files_ttl,
            evict=False,
        )

    async def create(self, owner: str, content: bytes, filename: str, purpose: str, media_type: str, ttl: float | None) -> StoredFile:
        """Keep a file.

        `ttl`: the file's time to live in seconds, if it is shorter than the setting `files_ttl`. Raises TooManyRequests if the files leave
        no room, and InvalidRequest if the file is larger than all room of its key.
        """
        ttl = self._ttl if ttl is None else min(ttl, self._ttl)
        created_at = int(time.time())
        file_id = f"file-{secrets.token_hex(16)}"
        file = StoredFile(file_id, filename, purpose, len(content), media_type, created_at, created_at + int(ttl))
        await self._values.put(owner, file_id, content, ttl=ttl)
        try:
            await self._values.put(owner, DESCRIPTION + file_id, orjson.dumps(asdict(file)), ttl=ttl)
        except BaseException:
            await self._values.delete(owner, file_id)
            raise
        return file

    async def find(self, owner: str, file_id: str) -> StoredFile | None:
        """Return the description of a file. None: the owner has no such file, or it has expired."""
        (file,) = await self.find_many(owner, (file_id,))
        return file

    async def find_many(self, owner: str, file_ids: Sequence[str]) -> list[StoredFile | None]:
        """Return the descriptions of files in order, as `find` does."""
        values = await self._values.get_many(owner, [DESCRIPTION + file_id for file_id in file_ids])
        return [None if value is None else StoredFile(**orjson.loads(value)) for value in values]

    async def content(self, owner: str, file_id: str) -> bytes | None:
        """Return the content of a file. None: the owner has no such file, or it has expired."""
        return None if file_id.startswith(DESCRIPTION) else await self._values.get(owner, file_id)

    async def list(self, owner: str) -> Sequence[str]:
        """Return the ids of an owner's files, the newest first."""
        return [value_id.removeprefix(DESCRIPTION) for value_id in await self._values.list(owner) if value_id.startswith(DESCRIPTION)]

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete a file. Return whether the owner had it."""
        existed = await self._values.delete(owner, DESCRIPTION + file_id)
        if existed:
            await self._values.delete(owner, file_id)
        return existed

    async def close(self) -> None:
        """Close the connections of the store."""
        await self._values.close()
