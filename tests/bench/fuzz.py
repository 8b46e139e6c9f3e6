"""`make fuzz`: whole requests that nobody has thought of, many at once, on the real engine. Every field is valid by itself, and any of them
come together: the engine has to answer or the gateway to refuse. After each batch nothing may be left running, the engine must be the same
one, and two requests with known answers must get them. A batch that fails is written to a file, for `--replay FILE`.

    make fuzz FUZZ="--minutes 10 --server small"     # one kind of server (SERVERS); without it, all of them in turn
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import hypothesis
from helpers import lora
from helpers.requests import MODEL, body, image
from helpers.server import Server, serve
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from llava_gateway.demo.images import Grid, data_uri, describe, draw, encode

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 640
"""Of the demo model. Its control tokens are the first, and among them the image's."""
PATIENCE = 120.0
"""Seconds for a whole batch, after which it counts as hung."""
GRID: Grid = ("red", "blue", "green", "orange")
IMAGES = {
    f"picture:{number}": data_uri(encode(draw(grid).resize(size)))
    for number, (grid, size) in enumerate(
        [
            (GRID, (336, 336)),
            (("white", "black", "red", "blue"), (336, 336)),
            (("green", "green", "green", "green"), (64, 64)),
            (("blue", "orange", "white", "red"), (1000, 300)),
            (("red", "white", "black", "green"), (17, 40)),
        ]
    )
}
"""By the names that stand for them in a batch's file."""
SERVERS = {
    "plain": ("--max-num-seqs", "32"),
    "small": ("--max-num-seqs", "24", "--num-gpu-blocks-override", "34", "--max-num-batched-tokens", "512"),
    "narrow": ("--max-num-seqs", "4", "--max-num-batched-tokens", "128", "--no-enable-prefix-caching"),
    "lora": ("--max-num-seqs", "24", "--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "1024"),
}
"""Flags. `small` has memory for the context of one long request: others are preempted, and prompts are read in parts."""
ADAPTERS = ("corner", "same")

token_ids = st.integers(0, TOKENS - 1) | st.sampled_from([0, 1, 2, 3, 4, TOKENS - 1])
words = st.sampled_from(["a", " ", ".", "I see", "see", "image", "🦙", "é", "</s>", "<image>", "x y", " red", "\n", "ASSISTANT:"])
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"type": "string", "maxLength": 12},
    {"anyOf": [{"const": None}, {"type": "number", "minimum": -1, "maximum": 1}]},
    {},
    {"enum": ["🦙", "é", ""]},
    {"not": {}},
]
forms = st.one_of(
    st.fixed_dictionaries({"json": st.sampled_from(SCHEMAS)}),
    st.just({"json_object": True}),
    st.fixed_dictionaries({"regex": st.sampled_from(["[ab]{2,5}", "(yes|no)", ".*", "a*", "", "\\d{3}", "[^a-z]+", "(🦙|é)+"])}),
    st.fixed_dictionaries({"choice": st.lists(words, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"grammar": st.sampled_from(['root ::= "x" root | "y"', 'start: "left" | "right"', "start: /[a-f]+/"])}),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0, 1e-9, 0.01, 0.5, 1, 2]),
    "top_p": st.sampled_from([1e-9, 0.1, 0.9, 1]),
    "top_k": st.sampled_from([-1, 0, 1, 2, TOKENS - 1, TOKENS, TOKENS + 1, 2**31 - 1]),
    "min_p": st.sampled_from([0, 1e-9, 0.5, 1]),
    "n": st.sampled_from([1, 1, 2, 3, 5, 16]),
    "seed": st.sampled_from([0, 1, 7, -1, 2**32, 2**62 - 1, 2**63 - 1, -(2**63)]),
    "presence_penalty": st.sampled_from([-2, 0, 0.5, 2]),
    "frequency_penalty": st.sampled_from([-2, 0, 0.5, 2]),
    "repetition_penalty": st.sampled_from([1e-300, 0.01, 0.9, 1, 1.2, 100, 1e300]),
    "logit_bias": st.dictionaries(token_ids.map(str), st.sampled_from([-100, -1, 0, 5, 100]), max_size=6),
    "allowed_token_ids": st.lists(token_ids, min_size=1, max_size=5),
    "stop_token_ids": st.lists(token_ids, max_size=4),
    "bad_words": st.lists(words.filter(str.strip), max_size=4),
    "stop": words | st.lists(words, min_size=1, max_size=4),
    "min_tokens": st.sampled_from([0, 1, 3, 8]),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "spaces_between_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "structured_outputs": forms,
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "prompt_logprobs": st.sampled_from([0, 1, 20]),
    "return_token_ids": st.booleans(),
    "cache_salt": st.sampled_from(["a", "b"]),
    "stream": st.booleans(),
}
long_texts = st.sampled_from([f"{unit} x {times}" for unit in ("I see red.", "🦙", "hello world") for times in (40, 130, 380)])
"""As a batch's file has them."""
texts = st.sampled_from(["Hello", "Describe this image.", " ", "é🦙", "What is in the top left?"]) | long_texts
image_parts = st.sampled_from(sorted(IMAGES)).map(lambda name: {"type": "image_url", "image_url": {"url": name}})
contents = st.builds(lambda images, text: [*images, {"type": "text", "text": text}], st.lists(image_parts, max_size=3) | st.just([]), texts)
messages = st.builds(
    lambda system, turns, last: [*system, *turns, {"role": "user", "content": last}],
    st.lists(st.just({"role": "system", "content": "You are a small model."}), max_size=1),
    st.just([]) | contents.map(lambda given: [{"role": "user", "content": given}, {"role": "assistant", "content": "I see."}]),
    contents,
)
max_tokens = st.sampled_from([1, 2, 5, 8, 8, 20, 60, 300])
chats = st.fixed_dictionaries(
    {"messages": messages, "max_tokens": max_tokens},
    optional=FIELDS | {"logprobs": st.booleans(), "top_logprobs": st.sampled_from([0, 1, 20])},
)
prompts = texts | st.lists(texts, min_size=1, max_size=4) | st.lists(token_ids, min_size=1, max_size=20)
completions = st.fixed_dictionaries(
    {"prompt": prompts, "max_tokens": max_tokens | st.just(0)},
    optional=FIELDS | {"logprobs": st.sampled_from([0, 5, 20]), "echo": st.booleans(), "add_special_tokens": st.booleans()},
) | st.fixed_dictionaries(
    {"prompt": st.just("USER: <image>\nDescribe this image. ASSISTANT:"), "max_tokens": max_tokens, "images": st.just(["picture:0"])},
    optional=FIELDS,
)
leaving = st.none() | st.none() | st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0])
"""Seconds after which the client is gone; None: it stays."""


def coherent(fields: dict[str, Any]) -> dict[str, Any]:
    """Without most of what the gateway refuses at once, so that the engine gets to see the rest."""
    left_out = set()
    if "structured_outputs" in fields or fields.get("response_format", {}).get("type") == "json_object":
        left_out |= {"min_tokens", "ignore_eos"}
    if "structured_outputs" in fields:
        left_out |= {"response_format", "allowed_token_ids"}
    if not fields.get("logprobs"):
        left_out.add("top_logprobs")
    if "prompt_logprobs" in fields:
        left_out.add("stream")
    if fields.get("min_tokens", 0) > fields["max_tokens"]:
        left_out.add("min_tokens")
    return {name: value for name, value in fields.items() if name not in left_out}


def requests(models: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """What stands in a batch: a path, a body, and when its client leaves."""
    given = {"model": st.sampled_from(models), "leaves": leaving}
    chat = st.fixed_dictionaries({"path": st.just(CHAT), "body": chats.map(coherent), **given})
    completion = st.fixed_dictionaries({"path": st.just(COMPLETIONS), "body": completions.map(coherent), **given})
    return chat | chat | completion


def shown(value: Any) -> Any:
    """With the images in the place of their names, and long texts written out."""
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shown(each) for each in value]
    if not isinstance(value, str):
        return value
    unit, _, times = value.rpartition(" x ")
    return (f"{unit} " * int(times)) if times.isdecimal() else IMAGES.get(value, value)


@dataclass
class Fuzz:
    """Sends batches to one server. Raises AssertionError at the first that it does not survive."""

    server: Server
    records: Path
    """Folder for batches that fail."""
    models: tuple[str, ...] = (MODEL,)
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._seeded = self._sampled()

    def run(self, batches: int, seed: int, size: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=batches, deadline=None, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck)
        )
        @hypothesis.given(st.lists(requests(self.models), min_size=size // 3, max_size=size))
        def sends(batch: list[dict[str, Any]]) -> None:
            self.batch(batch)

        sends()

    def batch(self, batch: list[dict[str, Any]]) -> None:
        try:
            asyncio.run(self._send(batch))
            self._quiet()
            self._known()
        except AssertionError as fault:
            raise AssertionError(f"{fault}\n{self._record(batch)}") from fault

    async def _send(self, batch: list[dict[str, Any]]) -> None:
        async with httpx.AsyncClient(base_url=self.server.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None)) as http:
            tasks = [asyncio.create_task(self._one(http, request)) for request in batch]
            _, late = await asyncio.wait(tasks, timeout=PATIENCE)
            assert not late, f"requests {[tasks.index(task) for task in late]} hang"
            faults = [f"request {number}: {fault!r}" for number, task in enumerate(tasks) if (fault := task.exception())]
            assert not faults, "\n".join(faults)

    async def _one(self, http: httpx.AsyncClient, request: dict[str, Any]) -> None:
        asked = http.post(request["path"], json=shown(request["body"]) | {"model": request["model"]})
        try:
            answer = await asyncio.wait_for(asked, request["leaves"])
        except TimeoutError:
            self.outcomes["left"] += 1
            return
        self.outcomes[str(answer.status_code)] += 1
        assert answer.status_code < 500, answer.text
        assert answer.status_code != 429, answer.text
        errors = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith('data: {"error"')]
        assert not [error for error in errors if error["error"]["type"] != "invalid_request_error"], errors

    def _quiet(self) -> None:
        """Nothing runs any more, and no engine has been started."""
        deadline = time.monotonic() + PATIENCE
        names = ("llava_requests_running ", "llava_requests_inside ", "vllm:num_requests_running{", "vllm:num_requests_waiting{")
        while busy := [line for line in self._metrics() if line.startswith(names) and float(line.split()[-1])]:
            assert time.monotonic() < deadline, f"left running: {busy}"
            time.sleep(0.02)
        assert "llava_engine_restarts 0.0" in self._metrics(), "the engine has died"

    def _known(self) -> None:
        answer = httpx.post(self.server.url + CHAT, json=body(image(GRID), "Describe this image."), timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == describe([GRID])
        assert self._sampled() == self._seeded, "the same seed has another answer"

    def _sampled(self) -> list[str]:
        asked = body("Hello", temperature=2, seed=7, n=2, max_tokens=20)
        answer = httpx.post(self.server.url + CHAT, json=asked, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return [choice["message"]["content"] for choice in answer.json()["choices"]]

    def _metrics(self) -> list[str]:
        return httpx.get(self.server.url + "/metrics", timeout=PATIENCE).text.splitlines()

    def _record(self, batch: list[dict[str, Any]]) -> str:
        file = self.records / f"fuzz-{time.time_ns()}.json"
        file.write_text(json.dumps(batch, indent=1, ensure_ascii=False))
        return f"the batch is in {file}"


def flags(kind: str, folder: Path) -> tuple[str, ...]:
    if kind != "lora":
        return SERVERS[kind]
    lora.train(folder / "corner")
    lora.without_effect(folder / "corner", folder / "same")
    return (*SERVERS[kind], "--lora-modules", *(f"{name}={folder / name}" for name in ADAPTERS))


def fuzz(kind: str, options: argparse.Namespace, deadline: float) -> Counter[str]:
    models = (MODEL, *ADAPTERS) if kind == "lora" else (MODEL,)
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), *flags(kind, Path(folder))) as server:
        fuzzing = Fuzz(server, Path.cwd(), models)
        try:
            if options.replay:
                fuzzing.batch(json.loads(options.replay.read_text()))
            seed = options.seed
            while not options.replay and time.monotonic() < deadline:
                fuzzing.run(10, seed, options.size)
                print(f"{kind}, seed {seed}: {fuzzing.outcomes.total()} requests", flush=True)
                seed += 1
        except AssertionError:
            print("\n".join(server.log.read_text().splitlines()[-60:]))
            raise
    return fuzzing.outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--server", choices=SERVERS, help="one kind alone")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="of the requests")
    parser.add_argument("--size", type=int, default=12, help="requests in the largest batch")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send one batch of an earlier run")
    options = parser.parse_args()
    kinds = [options.server] if options.server else list(SERVERS)
    outcomes: Counter[str] = Counter()
    for kind in kinds:
        outcomes += fuzz(kind, options, time.monotonic() + options.minutes * 60 / len(kinds))
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
