"""`/v1/decisions` over HTTP with an engine that gives each token a known probability: shapes, prompts, bounds, and the end of a request."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.errors import refused
from helpers.in_process import client_of
from helpers.requests import MODEL, image
from helpers.silent_engine import SilentEngine
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Decision

from llava_gateway.api.openai.decision_answers import confidence, shares
from llava_gateway.api.openai.decision_questions import pose, to_chats
from llava_gateway.api.openai.decision_request import DecisionRequest
from llava_gateway.app import build_app
from llava_gateway.auth.api_keys import Key, KeyFile, digest
from llava_gateway.demo import CHECKPOINT
from llava_gateway.engine.supervisor import Supervisor
from llava_gateway.errors import EngineFailed
from llava_gateway.observability import metrics
from llava_gateway.prompts.answer_tokens import AnswerTokens
from llava_gateway.serving.gateway import Gateway
from llava_gateway.serving.model_registry import ServedModel
from llava_gateway.settings import Settings
from llava_gateway.tokenizer import Tokenizer
from llava_gateway.types import MAX_LOGPROB_TOKEN_IDS, Delta, Prompt, SamplingParams, TokenLogprob, Usage

PATH = "/v1/decisions"
TOKENIZER = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())
GRID = ("red", "blue", "green", "orange")
PREDICATE = {"type": "predicate", "instructions": "The top left is red."}


def choice(*values: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values], **fields}


def score(*labels: str) -> dict[str, Any]:
    return {"type": "score", "instructions": "How red?", "levels": [{"label": label} for label in labels]}


class ProbableEngine(SilentEngine):
    """Gives the tokens that spell `likely` the weight 8, and every other token the weight 1."""

    def __init__(self, *likely: str) -> None:
        self.weights = dict.fromkeys((TOKENIZER.encode(each, add_special_tokens=False).ids[0] for each in likely), 8.0)
        self.prompts: list[str] = []
        self.images: list[int] = []
        self.asked: list[SamplingParams] = []
        self.running = self.most_running = 0

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
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.answer(prompt, sampling, usage, on_delta)
        finally:
            self.running -= 1

    async def answer(self, prompt: Prompt, sampling: SamplingParams, usage: Usage, on_delta: Callable[[Delta], None]) -> None:
        self.prompts.append(TOKENIZER.decode(prompt.token_ids))
        self.images.append(len(prompt.images))
        self.asked.append(sampling)
        for _ in range(10):  # so that questions overlap
            await asyncio.sleep(0)
        usage.prompt_tokens, usage.image_tokens, usage.cached_tokens, usage.completion_tokens = (
            len(prompt.token_ids),
            len(prompt.images),
            3,
            1,
        )
        ids = sampling.logprob_token_ids
        assert sampling.logprobs == len(ids) <= MAX_LOGPROB_TOKEN_IDS
        top = tuple((b"", math.log(self.weights.get(token, 1.0) / 1000)) for token in ids)
        on_delta(Delta(0, "", 1, "length", logprobs=(TokenLogprob(b"", 0.0, top, 0, ids),)))


@asynccontextmanager
async def served(engine: SilentEngine, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    gateway = Gateway(Settings(model=MODEL, **settings), [ServedModel(MODEL, Supervisor(lambda: engine, 10, None))])
    async with client_of(gateway) as http:
        yield http


def ask(engine: SilentEngine, *questions: Any, path: str = PATH, given: Any = "A picture.", **fields: Any) -> httpx.Response:
    async def post() -> httpx.Response:
        async with served(engine) as http:
            return await http.post(path, json={"input": given, "questions": list(questions), **fields})

    return asyncio.run(post())


def decided(answer: httpx.Response) -> Decision:
    """Return a decision as OpenAI's SDK reads it, after a check of its shape."""
    assert answer.status_code == 200, answer.text
    return Decision.model_validate(answer.json(), strict=True)


def endings(engine: ProbableEngine) -> list[str]:
    """Return the prompts after the text of the input."""
    return [prompt.partition("A picture.\n")[2] for prompt in engine.prompts]


@pytest.mark.parametrize("path", [PATH, "/v1/openai/decisions"])
def test_answers_have_openais_shapes_and_the_order_of_the_questions(path: str) -> None:
    engine = ProbableEngine(" yes", " red", "B")
    questions = [PREDICATE | {"name": "left"}, choice("blue", "red"), score("low", "high"), PREDICATE]
    decision = decided(ask(engine, *questions, path=path))
    predicate, chosen, scored, unnamed = decision.answers
    assert (predicate.type, predicate.name, unnamed.name, decision.model) == ("predicate", "left", None, MODEL)
    assert predicate.type == "predicate"
    assert predicate.probability > 0.6
    assert chosen.type == "choice"
    assert (chosen.choice, [each.value for each in chosen.probabilities]) == ("red", ["blue", "red"])
    assert sum(each.probability for each in chosen.probabilities) == pytest.approx(1)
    assert scored.type == "score"
    assert [(each.label, each.value) for each in scored.probabilities] == [("low", 0), ("high", 1)]
    assert scored.score == pytest.approx(scored.probabilities[1].probability)


def test_prompts_have_the_wording_that_the_demo_model_learns() -> None:
    engine = ProbableEngine()
    described = choice("red", "blue")
    described["choices"][0]["description"] = "like a rose"
    assert ask(engine, PREDICATE, choice("red", "blue", True), described, score("low", "high")).status_code == 200
    assert endings(engine) == [
        "The top left is red.\nIs this statement true? Please answer yes or no. ASSISTANT:",
        "Which?\nAnswer with one of these: red, blue, true. ASSISTANT:",
        "Which?\nA. red: like a rose\nB. blue\nAnswer with the option's letter from the given choices directly. ASSISTANT:",
        "How red?\nA. low\nB. high\nAnswer with the option's letter from the given choices directly. ASSISTANT:",
    ]


def test_question_is_a_turn_of_its_own_after_an_answer_of_the_assistant() -> None:
    engine = ProbableEngine()
    given = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    assert ask(engine, PREDICATE, given=given).status_code == 200
    assert "ASSISTANT: Hi.</s>USER: The top left is red." in engine.prompts[0]


@pytest.mark.parametrize(
    "names",
    [("red", "red light"), ("a" * 33, "blue"), ("one two three four", "blue"), ("red, or blue", "blue"), ("true", True), ("red", "Red")],
    ids=str,
)
def test_names_that_cannot_be_told_apart_by_a_token_get_letters(names: tuple[Any, ...]) -> None:
    engine = ProbableEngine("B")
    decision = decided(ask(engine, choice(*names)))
    (answer,) = decision.answers
    assert answer.type == "choice"
    assert answer.choice == names[1]
    assert type(answer.choice) is type(names[1])
    assert "\nA. " in engine.prompts[0]


def test_tokens_of_different_answers_are_disjoint() -> None:
    tokens = AnswerTokens(TOKENIZER, "USER: Hello ASSISTANT:")
    for question in (PREDICATE, choice("red", "blue", "green", "orange"), score(*"abcdefghij")):
        model: Any = DecisionRequest.parse({"input": "", "questions": [question]}).questions[0]
        answers = pose(model, tokens, "questions[0]").answers
        assert all(answers)
        assert len(frozenset().union(*answers)) == sum(map(len, answers))


def test_confidence_is_the_concentration_and_not_the_probability_of_the_answer() -> None:
    assert confidence([1.0, 0.0, 0.0]) == 1
    assert confidence([0.25] * 4) == 0
    assert 0 < confidence([0.6, 0.2, 0.2]) < confidence([0.6, 0.4, 0.0]) < confidence([0.9, 0.05, 0.05]) < 1


@given(st.lists(st.lists(st.floats(-9999, 0), min_size=1, max_size=4), min_size=2, max_size=255))
def test_shares_are_a_distribution_for_any_log_probabilities(logprobs: list[list[float]]) -> None:
    values = shares(logprobs)
    assert sum(values) == pytest.approx(1)
    assert all(0 <= value <= 1 for value in values)
    assert 0 <= confidence(values) <= 1


def test_image_is_loaded_once_and_every_prompt_has_it() -> None:
    engine = ProbableEngine()
    given = [{"role": "user", "content": [{"type": "input_image", "image_url": image(GRID)["image_url"]["url"]}]}]
    before = decoded()
    decision = decided(ask(engine, *[PREDICATE] * 20, given=given))
    assert engine.images == [1] * 20
    assert decoded() - before == 1
    assert decision.usage.input_tokens_details.cached_tokens == 20 * 3
    assert decision.usage.input_tokens == sum(len(TOKENIZER.encode(p, add_special_tokens=False).ids) for p in engine.prompts)
    assert (decision.usage.output_tokens, decision.usage.output_tokens_details.reasoning_tokens) == (20, 0)


def test_instructions_may_have_images_and_json() -> None:
    engine = ProbableEngine()
    parts = [
        {"type": "input_text", "text": "The color is this one:"},
        {"type": "input_image", "image_url": image(GRID)["image_url"]["url"]},
        {"type": "input_json", "data": {"color": "red"}},
    ]
    assert ask(engine, PREDICATE | {"instructions": parts}).status_code == 200
    assert engine.images == [1]
    assert 'The color is this one:\n{"color":"red"}\nIs this statement true?' in engine.prompts[0]


def test_calls_of_tools_and_their_outputs_are_history() -> None:
    engine = ProbableEngine()
    given = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be strict."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Look."}, {"type": "input_json", "data": [{"a": 1}]}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"at":"left"}'},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "red"}]},
        {"type": "custom_tool_call", "call_id": "2", "name": "shell", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "files"},
        {"role": "assistant", "phase": None, "content": [{"type": "output_text", "text": "Done."}, {"type": "refusal", "refusal": "No."}]},
    ]
    assert ask(engine, PREDICATE, given=given).status_code == 200
    for text in ("Be strict.", '[{"a":1}]', '"arguments":{"at":"left"}', "red", '"arguments":"ls"', "files", "Done."):
        assert text in engine.prompts[0]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([{"type": "function_call_output", "call_id": "x", "output": "1"}], "input[0].call_id"),
        ([{"type": "reasoning"}], "input[0]"),
        ([{"role": "narrator", "content": "x"}], "input[0].role"),
        ([{"role": "user", "content": [{"type": "input_text", "text": 1}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "nothing"}]}], "input[0].content[0].image_url"),
        ([{"role": "user", "content": [{"type": "input_json", "data": 1}]}], "input[0].content[0].data"),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"a": [0] * 10_000}}]}], "input[0].content[0].data"),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"a": "b" * (256 << 10)}}]}], "input[0].content[0].data"),
        ([], "input"),
        ([{"role": "user", "content": ["x"] * 4097}], "input"),
        (1, "input"),
    ],
)
def test_wrong_input_is_refused_by_its_path(given: Any, param: str) -> None:
    refused(ask(ProbableEngine(), PREDICATE, given=given), 400, param)


def test_json_may_be_as_deep_as_openais() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = {"a": value}
        return [{"role": "user", "content": [{"type": "input_json", "data": value}]}]

    assert ask(ProbableEngine(), PREDICATE, given=nested(32)).status_code == 200
    refused(ask(ProbableEngine(), PREDICATE, given=nested(33)), 400, "input[0].content[0].data")


@pytest.mark.parametrize(
    ("question", "param"),
    [
        ({"type": "joint", "instructions": "x"}, "questions[1]"),
        ({"type": "predicate"}, "questions[1].instructions"),
        (PREDICATE | {"criteria": {"true": "x"}}, "questions[1].criteria"),
        (choice("red"), "questions[1].choices"),
        (choice(*map(str, range(256))), "questions[1].choices"),
        (choice(1, "red"), "questions[1].choices[0].value"),
        (choice("", "red"), "questions[1].choices[0].value"),
        (choice("red", "blue", "red"), "questions[1].choices[2].value"),
        (choice(*map(str, range(60))), "questions[1].choices"),  # the demo model has too few tokens for so many letters
        (score("low"), "questions[1].levels"),
        (score(*map(str, range(11))), "questions[1].levels"),
        (score("low", ""), "questions[1].levels[1].label"),
        (PREDICATE | {"name": 1}, "questions[1].name"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_question_is_refused_by_its_path(question: Any, param: str) -> None:
    refused(ask(ProbableEngine(), PREDICATE, question), 400, param)


@pytest.mark.parametrize("field", ["joint", "state", "instructions", "stream", "images", "videos", "audio", "chat_template_kwargs"])
def test_extension_of_another_server_is_refused_by_name(field: str) -> None:
    refused(ask(ProbableEngine(), PREDICATE, **dict[str, Any]({field: {"a": True}})), 400, field)


def test_fields_for_openais_cache_and_users_are_accepted() -> None:
    part = {"type": "input_text", "text": "Hello", "prompt_cache_breakpoint": {"mode": "explicit"}}
    fields: dict[str, Any] = {
        "prompt_cache_key": "a",
        "prompt_cache_options": {"mode": "explicit"},
        "safety_identifier": "b",
        "model": None,
    }
    assert ask(ProbableEngine(), PREDICATE, given=[{"role": "user", "content": [part]}], **fields).status_code == 200


def test_400_questions_take_a_part_of_the_slots_and_leave_the_others_free() -> None:
    engine = ProbableEngine("Yes")

    async def run() -> None:
        async with served(engine, max_running=8, max_queued=0) as http:
            answer = await http.post(PATH, json={"input": "A picture.", "questions": [PREDICATE] * 400})
            assert len(decided(answer).answers) == 400
            refused(await http.post(PATH, json={"input": "A picture.", "questions": [PREDICATE] * 401}), 400, "questions")

    asyncio.run(run())
    assert engine.most_running == 2


def test_one_slot_and_no_queue_are_enough() -> None:
    async def run() -> httpx.Response:
        async with served(ProbableEngine("Yes"), max_running=1, max_queued=0) as http:
            return await http.post(PATH, json={"input": "A picture.", "questions": [PREDICATE, score("low", "high")] * 5})

    assert len(decided(asyncio.run(run())).answers) == 10


def test_more_tokens_than_the_engines_bound_are_asked_for_in_several_requests() -> None:
    class WideTokens(AnswerTokens):
        """Has a token for each label."""

        def labels(self, count: int) -> list[tuple[str, frozenset[int]]]:
            return [(f"L{number}", frozenset((number,))) for number in range(count)]

    request = DecisionRequest.parse({"input": "", "questions": [choice(*map(str, range(255)))]})
    posed = pose(request.questions[0], WideTokens(TOKENIZER, "ASSISTANT:"), "questions[0]")
    chats = to_chats(request, [posed])
    assert [(number, len(chat.sampling.logprob_token_ids)) for number, chat in chats] == [(0, 128), (0, 127)]
    assert len({chat.messages for _, chat in chats}) == 1


def test_long_input_is_refused_for_so_many_questions() -> None:
    refused(ask(ProbableEngine(), *[PREDICATE] * 400, given="red " * 6000), 400, "questions")


class FailingEngine(ProbableEngine):
    """Fails on the third question. The others wait."""

    async def answer(self, prompt: Prompt, sampling: SamplingParams, usage: Usage, on_delta: Callable[[Delta], None]) -> None:
        self.asked.append(sampling)
        if len(self.asked) == 3:
            raise EngineFailed("The third question failed.")
        await asyncio.Future()


def test_error_of_one_question_ends_the_others() -> None:
    engine = FailingEngine()
    assert "third question" in refused(ask(engine, *[PREDICATE] * 10), 500, None)["message"]
    assert engine.running == 0


def test_client_that_disconnects_ends_all_questions() -> None:
    class WaitingEngine(ProbableEngine):
        async def answer(self, prompt: Prompt, sampling: SamplingParams, usage: Usage, on_delta: Callable[[Delta], None]) -> None:
            if self.running == 4:
                four_run.set()
            await asyncio.Future()

    engine, four_run = WaitingEngine(), asyncio.Event()

    async def run() -> None:
        gateway = Gateway(Settings(model=MODEL, max_running=16), [ServedModel(MODEL, Supervisor(lambda: engine, 10, None))])
        await gateway.start()
        body = json.dumps({"input": "A picture.", "questions": [PREDICATE] * 10}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await four_run.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pytest.fail(f"no response is due: {message}")

        headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": headers}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": ""}
        await build_app(gateway)(scope, receive, send)
        assert gateway.admission.running == gateway.admission.in_flight == engine.running == 0
        await gateway.stop()

    asyncio.run(run())


def test_tokens_of_every_question_count_against_the_keys_limit(tmp_path: Path) -> None:
    key = Key("alice", digest("secret"), tokens_per_minute=100)
    file = KeyFile(tmp_path / "keys.json")
    file.add(key)

    async def run() -> None:
        async with served(ProbableEngine(), keys_file=str(file.path)) as http:
            headers = {"authorization": "Bearer secret"}
            few = await http.post(PATH, json={"input": "red", "questions": [PREDICATE]}, headers=headers)
            assert few.status_code == 200
            assert int(few.headers["x-ratelimit-remaining-tokens"]) == 100 - decided(few).usage.total_tokens
            many = await http.post(PATH, json={"input": "red", "questions": [PREDICATE] * 20}, headers=headers)
            refused(many, 429, None, "rate_limit_exceeded")

    asyncio.run(run())


def decoded() -> float:
    return float(metrics.IMAGES.labels("decoded")._value.get())
