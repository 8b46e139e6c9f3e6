"""The image files that clients upload, for the chats that name them by id."""

import secrets
import time
from dataclasses import asdict, dataclass

import orjson

from llava_gateway.errors import InvalidImage
from llava_gateway.settings import Settings, SettingsError
from llava_gateway.storage.object_store import Bounds, create_object_store
from llava_gateway.types import ImageFileId

CONTENT = ".content"
"""Ends the name under which a file's bytes are stored. Its description is stored under the id alone."""


@dataclass(frozen=True)
class StoredFile:
    """The description of an uploaded file."""

    id: str
    bytes: int
    """The size of the file."""
    created_at: int
    """Seconds since 1970."""
    expires_at: int
    """Seconds since 1970."""
    filename: str
    """The name that the client gave it."""
    purpose: str


class FileStore:
    """Uploaded files by owner, the name of an API key, and by id."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError if the setting `state` is not valid."""
        bounds = Bounds(settings.files_mb << 20, settings.files_mb_per_key << 20, settings.files_ttl, evict=False)
        try:
            self._objects = create_object_store(settings.state, "files", bounds)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        self.ttl = settings.files_ttl
        """The longest life of a file, in seconds."""

    async def add(self, owner: str, content: bytes, filename: str, purpose: str, seconds: int | None = None) -> StoredFile:
        """Store a file, and return its description.

        `seconds`: the file's life if it is shorter than that of all files. Raises InsufficientStorage and Unavailable.
        """
        now = int(time.time())
        expires_at = now + min(seconds or self.ttl, self.ttl)
        file = StoredFile(f"file-{secrets.token_hex(16)}", len(content), now, expires_at, filename, purpose)
        await self._objects.put(owner, file.id + CONTENT, content)
        try:
            await self._objects.put(owner, file.id, orjson.dumps(asdict(file)))
        except BaseException:
            await self._objects.delete(owner, file.id + CONTENT)
            raise
        return file

    async def get(self, owner: str, file_id: str) -> StoredFile | None:
        """Return a file's description, or None if the owner has no such file, or no longer. Raises Unavailable."""
        stored = await self._objects.get(owner, file_id)
        if stored is None or file_id.endswith(CONTENT):
            return None
        file = StoredFile(**orjson.loads(stored))
        return file if file.expires_at > time.time() else None

    async def content(self, owner: str, file_id: str) -> bytes | None:
        """Return a file's bytes, or None as `get` does. Raises Unavailable."""
        return await self._objects.get(owner, file_id + CONTENT) if await self.get(owner, file_id) else None

    async def read(self, owner: str, image: ImageFileId) -> bytes:
        """Return the bytes of the file that a request names. Raises InvalidImage if the owner has no such file, and Unavailable."""
        content = await self.content(owner, image.file_id)
        if content is None:
            raise InvalidImage(
                f"There is no file {image.file_id} of this API key. Files expire after {self.ttl} s; upload it again at /v1/files.",
                param=image.param,
                code="image_file_not_found",
            )
        return content

    async def list(self, owner: str) -> list[StoredFile]:
        """Return the descriptions of an owner's files, the newest first. Raises Unavailable."""
        ids = [name for name in await self._objects.list(owner) if not name.endswith(CONTENT)]
        return [file for file_id in ids if (file := await self.get(owner, file_id))]

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete a file, and return whether there was one. Raises Unavailable."""
        found = await self.get(owner, file_id) is not None
        for name in (file_id, file_id + CONTENT):
            await self._objects.delete(owner, name)
        return found

    async def close(self) -> None:
        """Close the connections to the storage."""
        await self._objects.close()
