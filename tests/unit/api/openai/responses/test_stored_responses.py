"""Stored responses over HTTP: conversations go on, have bounds, and belong to one API key."""

import asyncio
import json
from typing import Any

import pytest
from helpers.errors import refused
from helpers.responses import check_item_list
from helpers.served_responses import (
    FILE,
    PATH,
    PNG,
    RecordingEngine,
    WaitingEngine,
    create,
    message,
    padded,
    served,
    stream,
)

from llava_gateway.api.openai.responses.store import ResponseStore
from llava_gateway.storage.object_store import MemoryObjectStore


def test_conversation_goes_on_from_a_stored_response() -> None:
    """Its instructions do not."""
    engine = RecordingEngine("Blue")

    async def run() -> None:
        async with served(engine) as http:
            image = message("user", {"type": "input_image", "image_url": PNG}, {"type": "input_text", "text": "Which color?"})
            first = await create(http, [image], instructions="Be rude.")
            events = await stream(http, "And now?", previous_response_id=first["id"], instructions="Be nice.")
            second = events[-1]["response"]
            third = await create(http, "And then?", previous_response_id=second["id"])
            assert third["previous_response_id"] == second["id"]
            chat = [
                message("user", {"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "Which color?"}),
                {"role": "assistant", "content": "Blue"},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "Blue"},
                {"role": "user", "content": "And then?"},
            ]
            await http.post("/v1/chat/completions", json={"messages": chat})

    asyncio.run(run())
    assert "nice" in engine.prompts[1]
    assert "rude" not in engine.prompts[1]
    assert engine.prompts[2] == engine.prompts[3]
    assert engine.images == 1


def test_uploaded_file_stays_in_the_conversation() -> None:
    engine = RecordingEngine("Blue")

    async def run() -> None:
        async with served(engine) as http:
            file = (await http.post("/v1/files", files={"file": ("a.png", FILE)}, data={"purpose": "vision"})).json()
            first = await create(http, [message("user", {"type": "input_image", "file_id": file["id"], "detail": "auto"})])
            listed = (await http.get(f"{PATH}/{first['id']}/input_items")).json()
            check_item_list(listed)
            assert listed["data"][0]["content"][0]["file_id"] == file["id"]
            await create(http, "And now?", previous_response_id=first["id"])
            assert engine.images == 1
            await http.delete(f"/v1/files/{file['id']}")
            gone = await http.post(PATH, json={"input": "And now?", "previous_response_id": first["id"]})
            refused(gone, 400, "previous_response_id", "image_file_not_found")

    asyncio.run(run())


def test_item_reference_finds_input_and_output_items() -> None:
    engine = RecordingEngine("Blue")

    async def run() -> None:
        async with served(engine) as http:
            first = await create(http, [{"type": "reasoning"}, {"role": "user", "content": "Which color?"}])
            listed = (await http.get(f"{PATH}/{first['id']}/input_items")).json()
            check_item_list(listed)
            references: list[Any] = [{"type": "item_reference", "id": listed["data"][0]["id"]}, {"id": first["output"][0]["id"]}]
            second = await create(http, [*references, {"role": "user", "content": "And now?"}])
            listed = (await http.get(f"{PATH}/{second['id']}/input_items", params={"order": "asc"})).json()
            assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
            await create(http, "And now?", previous_response_id=first["id"])
            beyond = first["output"][0]["id"][:-1] + "9"
            refused(await http.post(PATH, json={"input": [{"id": beyond}]}), 400, "input[0].id", "item_not_found")

    asyncio.run(run())
    assert engine.prompts[1] == engine.prompts[2]


def test_stored_response_is_returned_listed_and_deleted() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            items = [{"role": "user", "content": str(number)} for number in range(3)]
            items.append(message("user", {"type": "input_image", "image_url": PNG}))
            response = await create(http, items)
            path = f"{PATH}/{response['id']}"
            assert (await http.get(path)).json() == response
            refused(await http.get(path, params={"stream": "true"}), 400, "stream")
            refused(await http.post(f"{path}/cancel"), 400, None)
            page = (await http.get(f"{path}/input_items", params={"limit": 2})).json()
            check_item_list(page)
            assert [item["content"][0].get("text") for item in page["data"]] == [None, "2"]
            assert page["data"][0]["content"][0]["image_url"] == PNG
            assert page["has_more"]
            rest = (await http.get(f"{path}/input_items", params={"after": page["last_id"]})).json()
            assert [item["content"][0]["text"] for item in rest["data"]] == ["1", "0"]
            assert not rest["has_more"]
            for name, value in (("limit", "0"), ("limit", "x"), ("order", "up"), ("after", "msg_1")):
                refused(await http.get(f"{path}/input_items", params={name: value}), 400, name)
            assert (await http.delete(path)).json() == {"id": response["id"], "object": "response", "deleted": True}
            for gone in (http.get(path), http.delete(path), http.get(f"{path}/input_items"), http.post(f"{path}/cancel")):
                refused(await gone, 404, None, "response_not_found")
            follow = await http.post(PATH, json={"input": "x", "previous_response_id": response["id"]})
            refused(follow, 400, "previous_response_id", "previous_response_not_found")

    asyncio.run(run())


def test_deepinfra_prefix_sees_the_same_responses() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            response = await create(http)
            assert (await http.get(f"/v1/openai/responses/{response['id']}")).json() == response

    asyncio.run(run())


def test_response_with_store_false_is_not_kept() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            response = await create(http, store=False)
            assert response["store"] is False
            refused(await http.get(f"{PATH}/{response['id']}"), 404, None, "response_not_found")

    asyncio.run(run())


def test_response_that_is_too_large_to_store_is_answered_and_says_so() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), responses_mb_per_key=1) as http:
            large = [message("user", {"type": "input_image", "image_url": padded(300_000)})]
            response = await create(http, large)
            assert response["store"] is False
            refused(await http.get(f"{PATH}/{response['id']}"), 404, None, "response_not_found")
            events = await stream(http, large)
            assert [event["response"]["store"] for event in events if "response" in event] == [True, True, False]

    asyncio.run(run())


def test_key_does_not_see_the_responses_of_another_key() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), api_keys=("first", "second")) as http:
            http.headers["authorization"] = "Bearer first"
            response = await create(http)
            http.headers["authorization"] = "Bearer second"
            path = f"{PATH}/{response['id']}"
            for other in (http.get(path), http.delete(path), http.get(f"{path}/input_items"), http.post(f"{path}/cancel")):
                refused(await other, 404, None, "response_not_found")
            follow = await http.post(PATH, json={"input": "x", "previous_response_id": response["id"]})
            refused(follow, 400, "previous_response_id", "previous_response_not_found")
            reference = await http.post(PATH, json={"input": [{"id": response["output"][0]["id"]}]})
            refused(reference, 400, "input[0].id", "item_not_found")
            http.headers["authorization"] = "Bearer first"
            assert (await http.get(path)).json() == response

    asyncio.run(run())


def test_oldest_responses_make_room_for_new_ones() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), responses_mb_per_key=1) as http:
            image = [message("user", {"type": "input_image", "image_url": padded(60_000)})]
            responses = [await create(http, image) for _ in range(16)]
            found = [(await http.get(f"{PATH}/{response['id']}")).status_code for response in responses]
            assert found == sorted(found, reverse=True)
            assert 8 < found.count(200) < 14

    asyncio.run(run())


def test_ten_thousand_responses_stay_within_their_memory() -> None:
    async def run() -> None:
        objects = MemoryObjectStore("responses", max_bytes=1 << 20, max_bytes_per_owner=1 << 20, ttl=60, evict=True)
        store = ResponseStore(objects, 1 << 16)
        for number in range(10_000):
            assert await store.save(f"resp_{number}", None, [{"id": str(number), "content": "x" * 1000}], b'{"output":[]}')
        kept = await objects.list("")
        assert sum([len(await objects.get("", name) or b"") for name in kept]) <= 1 << 20
        assert kept[0] == "resp_9999"
        assert len(kept) > 400

    asyncio.run(run())


def test_long_chain_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_gateway.api.openai.responses.store.MAX_RESPONSES", 3)

    async def run() -> None:
        async with served(RecordingEngine("Hello")) as http:
            last = None
            for _ in range(4):
                last = (await create(http, previous_response_id=last))["id"]
            refused(await http.post(PATH, json={"input": "x", "previous_response_id": last}), 400, "previous_response_id")

    asyncio.run(run())


def test_stored_conversation_counts_against_the_size_of_a_body() -> None:
    async def run() -> None:
        async with served(RecordingEngine("Hello"), max_body_mb=1) as http:
            image = message("user", {"type": "input_image", "image_url": padded(450_000)})
            first = await create(http, [image])
            second = await create(http, [image], previous_response_id=first["id"])
            answer = await http.post(PATH, json={"input": "x", "previous_response_id": second["id"]})
            assert "stored conversation" in refused(answer, 413, None)["message"]

    asyncio.run(run())


@pytest.mark.parametrize("streamed", [False, True])
def test_response_whose_client_disconnects_is_not_stored(streamed: bool) -> None:
    engine = WaitingEngine()

    async def run() -> None:
        async with served(engine) as http:
            transport: Any = http._transport
            body = json.dumps({"input": "Hello", "stream": streamed}).encode()
            request = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Any:
                if request:
                    return request.pop()
                await engine.started.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                pass

            scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "client": ("127.0.0.1", 1), "query_string": b""}
            await transport.app(scope, receive, send)
            assert await transport.app.state.gateway.responses.list("") == []
            engine.answers = True
            await create(http)
            assert len(await transport.app.state.gateway.responses.list("")) == 1

    asyncio.run(run())
