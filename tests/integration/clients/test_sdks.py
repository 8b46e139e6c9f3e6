"""Published client libraries, at the versions that the installation pins."""

import asyncio
import json
import subprocess
from typing import Any, Literal

import litellm
import ollama as ollama_sdk
import pytest
from helpers.documentation import run_example
from helpers.programs import NODE
from helpers.requests import MODEL, body, image, image_part, user
from helpers.server import ROOT, Server
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as LangchainCompletions
from litellm.router import Router
from openai import AsyncOpenAI, BadRequestError, LengthFinishReasonError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

from llava_gateway.demo.images import data_uri, describe, draw, encode

GRID = ("red", "blue", "green", "orange")
OTHER = ("white", "yellow", "black", "purple")
IMAGES = [data_uri(encode(draw(grid))) for grid in (GRID, OTHER)]
SCRIPTS = ROOT / "tests" / "node"
GREETING = "I see no image. I am a small demo model: send me an image and ask me to describe it."


class Answer(BaseModel):
    color: Literal["red", "blue"]
    count: int = Field(ge=0, le=9)


def test_async_openai_client_gets_whole_and_streamed_answers(server: Server) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0) as client:

            async def whole(*grids: Any) -> str:
                completion = await client.chat.completions.create(**body(*map(image, grids), "Describe these images."))
                return completion.choices[0].message.content or ""

            async def streamed(*grids: Any) -> str:
                stream = await client.chat.completions.create(**body(*map(image, grids), "Describe these images."), stream=True)
                return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])

            return list(await asyncio.gather(whole(GRID), streamed(GRID), whole(GRID, OTHER), streamed(GRID, OTHER)))

    one, two = describe([GRID]), describe([GRID, OTHER])
    assert asyncio.run(run()) == [one, one, two, two]


def test_openai_client_parses_a_structured_answer(client: OpenAI) -> None:
    completion = client.chat.completions.parse(**body(image(GRID), "Describe this image."), response_format=Answer)
    assert isinstance(completion.choices[0].message.parsed, Answer)
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(**body("Hello", max_tokens=2), response_format=Answer)


def test_openai_stream_helper_emits_all_events(client: OpenAI) -> None:
    with client.chat.completions.stream(**body("Hello", n=2, logprobs=True, top_logprobs=1), response_format=Answer) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= kinds
    assert [choice.index for choice in final.choices] == [0, 1]
    for choice in final.choices:
        assert choice.message.role == "assistant"
        assert isinstance(choice.message.parsed, Answer)
        assert choice.logprobs


def test_openai_client_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(**body("Hello") | {"model": "other"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as bad:
        client.chat.completions.create(**body("Hello"), stream=True, extra_body={"top_k": "many"})
    assert bad.value.param == "top_k"
    assert bad.value.request_id


def test_openai_raw_response_has_the_request_id(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**body("Hello"), extra_headers={"x-request-id": "mine-1"})
    assert raw.request_id == "mine-1"
    assert raw.parse().choices[0].message.content == GREETING


@pytest.fixture(scope="module")
def langchain(server: Server) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=server.v1, api_key="none", temperature=0, max_retries=0, stream_usage=True)


def test_langchain_gets_answers_and_usage(langchain: ChatOpenAI) -> None:
    assert langchain.invoke("Hello").text == GREETING
    parts: list[Any] = [*map(image_part, IMAGES), {"type": "text", "text": "Describe these images."}]
    message = HumanMessage(content=parts)
    answer = langchain.invoke([message])
    assert answer.text == describe([GRID, OTHER])
    assert answer.usage_metadata
    assert answer.usage_metadata["input_tokens"] > 1152
    chunks = list(langchain.stream([message]))
    assert "".join(chunk.text for chunk in chunks) == describe([GRID, OTHER])
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


def test_langchain_gets_structured_output_and_logprobs(langchain: ChatOpenAI) -> None:
    structured = langchain.with_structured_output(Answer, method="json_schema")
    assert isinstance(structured.invoke("Hello"), Answer)
    logprobs = langchain.bind(logprobs=True).invoke("Hello").response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in logprobs) == GREETING


def test_langchain_completions_work_in_a_list_and_a_stream(server: Server) -> None:
    """This client always sends a list of prompts."""
    model = LangchainCompletions(model=MODEL, base_url=server.v1, api_key="none", temperature=0, max_retries=0, max_tokens=40)
    prompts: Any = ["USER: Hello ASSISTANT:", "USER: Hi ASSISTANT:"]
    assert model.batch(prompts)[0].strip() == GREETING
    assert len(model.generate(prompts).generations) == 2
    assert "".join(model.stream(prompts[0])).strip() == GREETING


def test_litellm_gets_answers_streams_and_errors(server: Server) -> None:
    settings: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": server.v1, "api_key": "none", "temperature": 0, "num_retries": 0}
    text = litellm.completion(**settings, messages=[{"role": "user", "content": "Hello"}])
    assert text.choices[0].message.content == GREETING
    messages = [user(*map(image_part, IMAGES), "Describe these images.")]
    whole = litellm.completion(**settings, messages=messages)
    assert whole.choices[0].message.content == describe([GRID, OTHER])
    assert whole.usage.prompt_tokens > 1152
    stream = litellm.completion(**settings, messages=messages, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == describe([GRID, OTHER])
    form = litellm.completion(**settings, messages=[{"role": "user", "content": "Hello"}], response_format=Answer)
    Answer.model_validate_json(form.choices[0].message.content)
    with pytest.raises(litellm.exceptions.BadRequestError):
        litellm.completion(**settings | {"temperature": 9}, messages=[{"role": "user", "content": "Hello"}])


def test_litellm_asks_a_larger_model_for_a_prompt_that_is_too_long(server: Server) -> None:
    here: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": server.v1, "api_key": "none"}
    larger = {"model": "openai/larger", "api_key": "none", "mock_response": "from the larger model"}
    router = Router(
        model_list=[{"model_name": "llava", "litellm_params": here}, {"model_name": "larger", "litellm_params": larger}],
        context_window_fallbacks=[{"llava": ["larger"]}],
        num_retries=0,
    )
    for content in ("word " * 5000, "word " * 500_000, [image_part(IMAGES[0])] * 8):
        messages: Any = [{"role": "user", "content": content}]
        with pytest.raises(litellm.exceptions.ContextWindowExceededError):
            litellm.completion(**here, messages=messages, num_retries=0)
        answer: Any = router.completion("llava", messages=messages)
        assert answer.choices[0].message.content == "from the larger model"


def test_litellm_reaches_anthropics_messages(server: Server) -> None:
    messages = [{"role": "system", "content": "Be kind."}, user(image(GRID), "Describe this image.")]
    asked: Any = {"model": f"anthropic/{MODEL}", "api_base": server.url, "api_key": "none", "messages": messages, "temperature": 0}
    answer: Any = litellm.completion(**asked, max_tokens=200, num_retries=0)
    assert answer.choices[0].message.content == describe([GRID])
    stream: Any = litellm.completion(**asked, max_tokens=200, num_retries=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == describe([GRID])
    tool = {"type": "function", "function": {"name": "answer", "parameters": Answer.model_json_schema()}}
    called: Any = litellm.completion(**asked, max_tokens=200, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    (call,) = called.choices[0].message.tool_calls
    assert Answer.model_validate_json(call.function.arguments)
    with pytest.raises(litellm.exceptions.ContextWindowExceededError):
        litellm.completion(**asked | {"messages": [user("word " * 5000)]}, max_tokens=200, num_retries=0)


@pytest.fixture(scope="module")
def ollama(server: Server) -> ollama_sdk.Client:
    return ollama_sdk.Client(server.url)


def ask(*grids: Any) -> dict[str, Any]:
    """Return a request of Ollama's package, with one message. Its images are bytes."""
    question = "Describe this image." if len(grids) == 1 else "Describe these images."
    message = {"role": "user", "content": question, "images": [encode(draw(grid)) for grid in grids]}
    return {"model": MODEL, "messages": [message], "options": {"temperature": 0}}


def test_ollama_for_python_gets_whole_and_streamed_answers(ollama: ollama_sdk.Client) -> None:
    whole = ollama.chat(**ask(GRID, OTHER))
    assert whole.message.content == describe([GRID, OTHER])
    assert (whole.prompt_eval_count or 0) > 1152
    assert (whole.done_reason, bool(whole.eval_duration)) == ("stop", True)
    *chunks, end = ollama.chat(**ask(GRID), stream=True)
    assert "".join(chunk.message.content or "" for chunk in chunks) == describe([GRID])
    assert 1 < len(chunks) <= (end.eval_count or 0)
    picture = str(ROOT / "examples" / "pictures" / "first.png")
    answer = ollama.generate(f"{MODEL}:latest", "Describe this image.", images=[picture], options={"temperature": 0})
    assert answer.response == describe([("red", "blue", "green", "white")])
    form = ollama.chat(MODEL, [{"role": "user", "content": "Hello"}], format=Answer.model_json_schema())
    assert Answer.model_validate_json(form.message.content or "")


def test_ollama_for_python_finds_models_and_raises_its_own_errors(ollama: ollama_sdk.Client) -> None:
    assert [model.model for model in ollama.list().models] == [f"{MODEL}:latest"] == [model.model for model in ollama.ps().models]
    assert ollama.show(MODEL).capabilities == ["completion", "vision"]
    assert ollama.pull(MODEL).status == [part.status for part in ollama.pull(MODEL, stream=True)][-1] == "success"
    with pytest.raises(ollama_sdk.ResponseError, match="llava-demo") as missing:
        ollama.chat("llava:13b", [{"role": "user", "content": "Hello"}])
    assert missing.value.status_code == 404
    with pytest.raises(ollama_sdk.ResponseError, match=r"options\.mirostat"):
        list(ollama.generate(MODEL, "Hello", stream=True, options={"mirostat": 1}))
    with pytest.raises(ollama_sdk.ResponseError, match="embeddings"):
        ollama.embed(MODEL, "Hello")


def test_examples_for_ollama_and_anthropic_describe_their_images(server: Server) -> None:
    first, second = describe([("red", "blue", "green", "white")]), describe([("yellow", "black", "orange", "purple")])
    assert run_example(server, "ollama_chat.py") == [f"{first} [stop, 587 + 25 tokens]", "Red."]
    assert run_example(server, "anthropic_messages.py") == [f"{first} [end_turn]", f"{second} [end_turn]"]


def test_ollama_for_node_works(server: Server) -> None:
    got = node("ollama.mjs", server, server.url)
    assert got["models"] == [f"{MODEL}:latest"]
    assert got["capabilities"] == ["completion", "vision"]
    assert got["image"] == got["streamed"] == got["generated"] == describe([GRID])
    assert got["images"] == describe([GRID, OTHER])
    assert got["form"] == {"color": "red"}
    assert got["pulled"] == "success"
    assert got["error"] == [404, "There is no model 'other' here; 'llava-demo' is served."]


def node(script: str, server: Server, base_url: str | None = None) -> dict[str, Any]:
    command = [NODE, str(SCRIPTS / script), base_url or server.v1]
    ended = subprocess.run(command, input=json.dumps(IMAGES), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    got: dict[str, Any] = json.loads(ended.stdout)
    return got


def test_openai_for_node_works(server: Server) -> None:
    got = node("openai.mjs", server)
    assert got["models"] == [MODEL]
    assert got["text"] == GREETING
    assert got["image"] == got["streamed"] == describe([GRID])
    assert got["images"] == describe([GRID, OTHER])
    assert got["imageTokens"] == 1152
    assert got["streamedUsage"]["prompt_tokens_details"]["image_tokens"] == 576
    assert got["helper"] == [[0, "assistant", "stop", True], [1, "assistant", "stop", True]]
    assert got["parsed"] is True
    assert got["completion"] == " I see no image"
    assert got["response"] == describe([GRID])
    assert got["form"] == {"color": "red"}
    assert got["decisions"] == [True, "blue"]
    assert got["file"] == [describe([GRID]), True]
    assert got["errors"] == [
        ["NotFoundError", 404, "model", "model_not_found"],
        ["BadRequestError", 400, "temperature", None],
        ["BadRequestError", 400, "messages[0].content[0].image_url.url", "invalid_image_url"],
        ["BadRequestError", 400, "messages", "context_length_exceeded"],
    ]


def test_vercel_ai_sdk_works(server: Server) -> None:
    got = node("ai-sdk.mjs", server)
    assert got["text"] == GREETING
    assert got["image"] == describe([GRID])
    assert got["images"] == describe([GRID, OTHER])
    assert got["deltas"] > 10
    assert got["finishReason"] == "stop"
    assert got["usage"]["inputTokens"] > 1152
    assert got["object"]["color"] in ("red", "blue")
    assert got["error"][0] == 404


def test_curl_sends_several_images(server: Server) -> None:
    asked = json.dumps(body(*map(image_part, IMAGES), "Describe these images."))
    command = ["curl", "-sS", "--fail-with-body", server.v1 + "/chat/completions", "-H", "content-type: application/json", "-d", "@-"]
    said = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(said)["choices"][0]["message"]["content"] == describe([GRID, OTHER])
