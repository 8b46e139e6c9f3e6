"""`/v1/files` over HTTP, and chats that name files, with an engine that answers at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from helpers.errors import refused
from helpers.requests import MODEL, image_part, user
from helpers.silent_engine import SilentEngine
from openai.types import FileDeleted, FileObject

from llava_gateway.app import create_app
from llava_gateway.demo.images import data_uri, draw, encode
from llava_gateway.settings import Settings
from llava_gateway.types import Delta, Prompt, SamplingParams, Usage

PNG = encode(draw(("red", "blue", "green", "yellow")))
CHAT = "/v1/chat/completions"
ALICE, BOB = {"authorization": "Bearer alice-secret"}, {"authorization": "Bearer bob-secret"}


class DigestEngine(SilentEngine):
    """An engine that answers with the digests of the images."""

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        usage.prompt_tokens = len(prompt.token_ids)
        on_delta(Delta(0, " ".join(image.digest for image in prompt.images), 1, "stop"))


def serve(scenario: Callable[[httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    """Run a scenario with a client of a gateway."""

    async def run() -> None:
        app = create_app(Settings(model=MODEL, **settings), engine=DigestEngine)
        gateway = app.state.gateway
        await gateway.start()
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
                await scenario(http)
        finally:
            await gateway.stop()

    asyncio.run(run())


async def upload(
    http: httpx.AsyncClient, content: bytes = PNG, headers: Any = None, filename: str = "a.png", **fields: str
) -> httpx.Response:
    data = {"purpose": "vision"} | fields
    return await http.post("/v1/files", files={"file": (filename, content)}, data=data, headers=headers)


async def uploaded(http: httpx.AsyncClient, **options: Any) -> FileObject:
    answer = await upload(http, **options)
    assert answer.status_code == 200, answer.text
    return FileObject.model_validate(answer.json())


def chat(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [user(part, "What is this?")]}


def test_file_is_described_listed_read_and_deleted() -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        file = await uploaded(http, filename='Katze "1".png')
        assert (file.bytes, file.filename, file.purpose, file.object) == (len(PNG), 'Katze "1".png', "vision", "file")
        assert file.expires_at == file.created_at + 86_400
        assert (await http.get(f"/v1/files/{file.id}")).json() == file.model_dump(exclude_unset=True)
        content = await http.get(f"/v1/files/{file.id}/content")
        assert (content.content, content.headers["content-type"]) == (PNG, "image/png")
        assert content.headers["content-disposition"] == "attachment"
        assert [entry["id"] for entry in (await http.get("/v1/files")).json()["data"]] == [file.id]
        assert FileDeleted.model_validate((await http.delete(f"/v1/files/{file.id}")).json()).deleted
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            refused(await http.request(method, f"/v1/files/{file.id}{path}"), 404, "file_id", "file_not_found")
        assert (await http.get("/v1/files")).json()["data"] == []

    serve(scenario)


def test_list_has_pages() -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        ids = [(await uploaded(http, purpose=purpose)).id for purpose in ("vision", "user_data", "vision")]

        async def page(**query: Any) -> tuple[list[str], bool]:
            answer = (await http.get("/v1/files", params=query)).json()
            listed = [file["id"] for file in answer["data"]]
            assert (answer["object"], answer["first_id"], answer["last_id"]) == ("list", *(listed[:1] + listed[-1:] or [None, None]))
            return listed, answer["has_more"]

        assert await page() == (ids[::-1], False)
        assert await page(limit=2) == (ids[:0:-1], True)
        assert await page(limit=2, after=ids[1]) == (ids[:1], False)
        assert await page(order="asc", limit=1) == (ids[:1], True)
        assert await page(purpose="vision") == ([ids[2], ids[0]], False)
        assert await page(purpose="batch") == ([], False)
        for query in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "file-none"}):
            (name,) = query
            refused(await http.get("/v1/files", params=query), 400, name)

    serve(scenario)


def test_another_keys_file_is_like_an_unknown_one() -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        file = await uploaded(http, headers=ALICE)
        assert (await http.get("/v1/files", headers=BOB)).json()["data"] == []
        for path in ("", "/content"):
            theirs, unknown = [await http.get(f"/v1/files/{name}{path}", headers=BOB) for name in (file.id, "file-none")]
            assert (theirs.status_code, theirs.json()) == (404, unknown.json())
        refused(await http.delete(f"/v1/files/{file.id}", headers=BOB), 404, "file_id")
        named = chat({"type": "input_image", "file_id": file.id})
        refused(await http.post(CHAT, json=named, headers=BOB), 400, "messages[0].content[0].file_id", "image_file_not_found")
        assert (await http.post(CHAT, json=named, headers=ALICE)).status_code == 200
        refused(await http.get("/v1/files"), 401, None)

    serve(scenario, api_keys=("alice-secret", "bob-secret"))


FORMS = (
    ("image_url.file_id", lambda name: {"type": "image_url", "image_url": {"file_id": name}}),
    ("file_id", lambda name: {"type": "image_url", "file_id": name}),
    ("file_id", lambda name: {"type": "input_image", "file_id": name, "image_url": None}),
    ("file.file_id", lambda name: {"type": "file", "file": {"file_id": name}}),
)


@pytest.mark.parametrize(("path", "part"), FORMS)
def test_chat_with_a_file_gets_the_same_image_as_by_data_uri(path: str, part: Callable[[str], dict[str, Any]]) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        file = await uploaded(http)
        by_uri = (await http.post(CHAT, json=chat(image_part(data_uri(PNG))))).json()
        by_file = (await http.post(CHAT, json=chat(part(file.id)))).json()
        assert by_file["choices"] == by_uri["choices"]
        by_data = (await http.post(CHAT, json=chat({"type": "file", "file": {"file_data": data_uri(PNG)}}))).json()
        assert by_data["choices"] == by_uri["choices"]
        await http.delete(f"/v1/files/{file.id}")
        for name in (file.id, "", "description/" + file.id):
            answer = await http.post(CHAT, json=chat(part(name)))
            assert "Files expire" in refused(answer, 400, f"messages[0].content[0].{path}", "image_file_not_found")["message"]

    serve(scenario)


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"type": "image_url"}, ""),
        ({"type": "image_url", "image_url": {}}, ".image_url"),
        ({"type": "image_url", "image_url": {"url": "https://a/b.png", "file_id": "file-1"}}, ".image_url"),
        ({"type": "input_image", "image_url": "https://a/b.png", "file_id": "file-1"}, ""),
        ({"type": "file", "file": {"file_id": 1}}, ".file.file_id"),
        ({"type": "file", "file": {}}, ".file"),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}, ".file"),
        ({"type": "file", "file": {"file_data": "AAAA"}}, ".file"),
    ],
)
def test_part_without_one_image_is_refused(part: dict[str, Any], path: str) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        refused(await http.post(CHAT, json=chat(part)), 400, "messages[0].content[0]" + path)

    serve(scenario)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "²"}, "expires_after[seconds]"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, str], param: str) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        refused(await upload(http, **fields), 400, param)  # type: ignore[arg-type]

    serve(scenario)


@pytest.mark.parametrize(
    ("content", "code"), [(b"%PDF-1.7", None), (b"", None), (PNG[:60], None), (PNG + bytes(1 << 20), "image_too_large")]
)
def test_file_that_is_no_image_is_refused(content: bytes, code: str | None) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        refused(await upload(http, content), 400, "file", code)
        assert (await http.get("/v1/files")).json()["data"] == []

    serve(scenario, max_image_mb=1)


def test_file_expires() -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        file = await uploaded(http, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
        assert file.expires_at == file.created_at + 3600
        values = http._transport.app.state.gateway.files._values  # type: ignore[attr-defined]
        clock = values._clock
        values._clock = lambda: clock() + 3601
        refused(await http.get(f"/v1/files/{file.id}"), 404, "file_id")
        answer = await http.post(CHAT, json=chat({"type": "input_image", "file_id": file.id}))
        refused(answer, 400, "messages[0].content[0].file_id", "image_file_not_found")

    serve(scenario)


def test_key_without_room_is_refused_and_another_key_is_not() -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        large = PNG + bytes(600_000)
        await uploaded(http, content=large, headers=ALICE)
        refused(await upload(http, large, headers=ALICE), 429, None, "storage_full")
        await uploaded(http, content=large, headers=BOB)
        assert len((await http.get("/v1/files", headers=ALICE)).json()["data"]) == 1

    serve(scenario, api_keys=("alice-secret", "bob-secret"), files_mb_per_key=1)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{}", 415),
        ({"content-type": "multipart/form-data"}, b"--a--", 400),
        ({"content-type": "multipart/form-data; boundary=a"}, b"--a\r\n", 400),
        ({"content-type": "multipart/form-data; boundary=a", "content-encoding": "gzip"}, b"--a--", 415),
        ({"content-type": "multipart/form-data; boundary=a"}, b"--a--", 400),
        ({"content-type": "multipart/form-data; boundary=a"}, bytes((1 << 20) + 1), 413),
    ],
)
def test_hostile_form_is_refused_and_frees_its_memory(headers: dict[str, str], body: bytes, status: int) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/files", content=body, headers=headers)
        refused(answer, status, answer.json()["error"]["param"])
        assert http._transport.app.state.body_reader.bytes == 0  # type: ignore[attr-defined]

    serve(scenario, max_body_mb=1)
