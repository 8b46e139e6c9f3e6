"""What operators configure: keys and their limits, logs, usage, traces, CORS origins, and a server that ends with its engine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from helpers.requests import body, image
from helpers.server import Server, free_port, serve
from helpers.waiting import json_lines, wait_for
from openai import AuthenticationError, NotFoundError, OpenAI, RateLimitError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from llava_gateway.demo.images import describe

CHAT = "/v1/chat/completions"
GRID = ("red", "blue", "green", "orange")
PLAIN = "a-key-of-the-operators-own"
OTHER = "another-one"
DEEPINFRA = "llava-hf/llava-1.5-7b-hf"
PROMPT = "Hello, do not write this down"
ORIGIN = "https://chat.example.com"


class Collector(ThreadingHTTPServer):
    """A collector that receives spans by OTLP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.spans: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        content = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        self.server.spans += [span for of in content.resource_spans for scope in of.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@dataclass
class OperatedServer:
    """A server with keys, logs and a collector of traces."""

    server: Server
    folder: Path
    collector: Collector
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, name: str) -> httpx.Client:
        return self.server.client(self.keys[name])

    def usage(self) -> list[dict[str, Any]]:
        return json_lines(self.folder / "usage.jsonl")

    def lines(self) -> list[dict[str, Any]]:
        """Return the log's lines about requests."""
        return [line for line in json_lines(self.server.log) if line["logger"] == "llava_gateway.requests"]

    def metric(self, name: str) -> float:
        with self.client("alice") as http:
            found = [float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
        assert found, name
        return sum(found)


def keys(folder: Path, *arguments: str) -> str:
    """Run `llava-gateway keys` for the keys' file in a folder, and return its output."""
    command = [sys.executable, "-m", "llava_gateway", "keys", *arguments, "--file", "keys.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def wait_for_status(operated_server: OperatedServer, name: str, status: int) -> None:
    """Wait until the server has seen the change of its keys' file. It looks every second."""
    with operated_server.client(name) as http:
        wait_for(lambda: http.get("/v1/models").status_code == status)


@pytest.fixture(scope="module")
def operated_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatedServer]:
    folder = tmp_path_factory.mktemp("operated")
    made = {
        "alice": keys(folder, "new", "alice"),
        "bob": keys(folder, "new", "bob", "--models", "another-model"),
        "carol": keys(folder, "new", "carol", "--concurrent", "1"),
        "dave": keys(folder, "new", "dave", "--requests-per-minute", "3"),
        "erin": keys(folder, "new", "erin", "--tokens-per-minute", "700"),
    }
    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    flags = (
        *("--keys-file", "keys.json", "--api-key", PLAIN, "--api-key", OTHER, "--usage-log", "usage.jsonl", "--log-format", "json"),
        *("--cors-origins", ORIGIN, "--more-ports", f"{free_port()},{free_port()}", "--model-alias", f"{DEEPINFRA},old-name=llava-sn"),
        *("--tools-auto", "prompt"),
        *("--on-engine-death", "exit", "--trace-endpoint", collector.url, "--otlp-traces-endpoint", collector.url),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")  # vLLM otherwise sends its spans by gRPC
        with serve(folder, *flags) as server:
            yield OperatedServer(server, folder, collector, made)
    collector.shutdown()


PATHS = (
    *(CHAT, "/v1/completions", "/v1/models", "/v1/models/llava-demo", "/tokenize", "/detokenize", "/version", "/openapi.json", "/docs"),
    *("/metrics", "/nope", "/v1", "/health//", "//health", "/HEALTH", "/v1/%2e%2e/health", "/health;x"),
    "/x?/health",
    *("/v1/openai/chat/completions", "/api/predict/generic/p/e", "/api/predict/generic/stream/p/e", "/api/v2/predict/generic/p/e"),
    *("/api/predict/nlp/p/e", "/api/v1/generate", "/api/v1/chat", "/api/v1/model", "/api/v1/token-count", "/api/v1/stop-stream"),
    *("/list_models", "/get_worker_address", "/worker_generate_stream", "/worker_get_status", "/refresh_all_workers"),
)
DIALECTS = ("/api/", "/list_models", "/get_worker", "/worker", "/refresh")
"""Paths that begin so have errors in the shape of another server."""


WRONG_HEADERS: list[dict[str, str]] = [
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Basic x"},
    {"key": ""},
    {"x-api-key": "wrong"},
    {"authorization": "Bearer"},
]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_needs_a_key(operated_server: OperatedServer, path: str) -> None:
    for method, headers in product(("GET", "POST", "OPTIONS", "HEAD", "DELETE"), WRONG_HEADERS):
        answer = httpx.request(method, operated_server.server.url + path, headers=headers, timeout=60)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["x-content-type-options"] == "nosniff"
        if method != "HEAD" and not path.startswith(DIALECTS):
            assert answer.json()["error"]["code"] == "invalid_api_key"


def test_host_header_does_not_bypass_the_key(operated_server: OperatedServer) -> None:
    for given, status in (("x/health?", 400), ("x/health#", 400), ("health", 401), ("127.0.0.1/health", 400)):
        with socket.create_connection(operated_server.server.address, timeout=60) as connection:
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nhost: {given}\r\nconnection: close\r\n\r\n".encode())
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 %d" % status)


def test_websocket_needs_a_key(operated_server: OperatedServer) -> None:
    handshake = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    for path in ("/health", "/v1/models", "/nope", "/api/v1/stream", "/api/v1/chat-stream"):
        with socket.create_connection(operated_server.server.address, timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{handshake}\r\n".encode())
            assert b" 101 " not in connection.recv(4096).split(b"\r\n")[0]


def test_health_probes_need_no_key(operated_server: OperatedServer) -> None:
    assert httpx.get(f"{operated_server.server.url}/health", timeout=60).status_code == 200
    assert httpx.get(f"{operated_server.server.url}/ready", timeout=60).status_code == 200


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "json_object"}, "max_tokens": 60}, {"n": 4, "temperature": 1.5}])
def test_tools_are_written_into_the_prompt(operated_server: OperatedServer, fields: dict[str, Any]) -> None:
    """The answer is text, or JSON, or calls with valid arguments, as the engine's grammar allows."""
    tools = [{"type": "function", "function": {"name": "show", "parameters": {"type": "object", "properties": {"at": {"const": "top"}}}}}]
    with operated_server.client("alice") as http:
        plain = http.post(CHAT, json=body("Hello")).json()["usage"]["prompt_tokens"]
        answer = http.post(CHAT, json=body("Hello", tools=tools) | fields)
        assert answer.status_code == 200, answer.text
        assert "x-llava-tools" not in answer.headers
        assert answer.json()["usage"]["prompt_tokens"] > plain
        for choice in answer.json()["choices"]:
            calls = choice["message"].get("tool_calls", ())
            assert all(json.loads(call["function"]["arguments"]) in ({}, {"at": "top"}) for call in calls)
            assert calls or choice["message"]["content"]
            if "response_format" in fields and not calls:
                assert choice["message"]["content"].startswith("{")


def test_key_is_accepted_in_each_header(operated_server: OperatedServer) -> None:
    for key in (PLAIN, OTHER, operated_server.keys["alice"]):
        for headers in (
            {"authorization": f"Bearer {key}"},
            {"authorization": f"bearer  {key}"},
            {"key": key},
            {"x-api-key": key},
            {"api-key": key},
        ):
            assert httpx.get(f"{operated_server.server.url}/v1/models", headers=headers, timeout=60).status_code == 200


def test_openai_client_uses_a_key(operated_server: OperatedServer) -> None:
    sdk = OpenAI(base_url=operated_server.server.v1, api_key=operated_server.keys["alice"], max_retries=0)
    assert sdk.chat.completions.create(**body("Hello", max_tokens=2)).usage
    with pytest.raises(AuthenticationError):
        sdk.with_options(api_key="wrong").models.list()
    with pytest.raises(NotFoundError):
        sdk.with_options(api_key=operated_server.keys["bob"]).chat.completions.create(**body("Hello"))
    assert sdk.with_options(api_key=operated_server.keys["bob"]).models.list().data == []


def test_model_alias_is_served_under_its_name(operated_server: OperatedServer) -> None:
    operated_server.keys["uma"] = keys(operated_server.folder, "new", "uma", "--models", DEEPINFRA)
    wait_for_status(operated_server, "uma", 200)
    sdk = OpenAI(base_url=f"{operated_server.server.v1}/openai", api_key=operated_server.keys["alice"], max_retries=0)
    assert [model.id for model in sdk.models.list()] == ["llava-demo", DEEPINFRA, "old-name"]
    assert sdk.models.retrieve(DEEPINFRA).id == DEEPINFRA
    answer = sdk.chat.completions.create(**body(image(GRID), "Describe this image.") | {"model": DEEPINFRA})
    assert (answer.model, answer.choices[0].message.content) == (DEEPINFRA, describe([GRID]))
    hers = sdk.with_options(api_key=operated_server.keys["uma"])
    assert [model.id for model in hers.models.list()] == [DEEPINFRA]
    assert hers.chat.completions.create(**body("Hello", max_tokens=1) | {"model": DEEPINFRA}).usage
    with pytest.raises(NotFoundError):
        hers.chat.completions.create(**body("Hello"))
    assert {line["model"] for line in operated_server.lines() if "model" in line} == {"llava-demo"}


def test_model_alias_selects_its_template(operated_server: OperatedServer) -> None:
    with operated_server.client("alice") as http:
        chat = {"messages": [{"role": "user", "content": "Hello"}]}
        for model, form in (("old-name", "### Human: Hello\n\n###"), ("llava-demo", "USER: Hello ASSISTANT:")):
            tokens = http.post("/tokenize", json=chat | {"model": model}).json()["tokens"]
            assert http.post("/detokenize", json={"tokens": tokens}).json()["prompt"].endswith(form)


def test_additional_ports_are_served(operated_server: OperatedServer) -> None:
    listening = [
        each for each in psutil.Process(operated_server.server.process.pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN
    ]
    answers = 0
    for url in (f"http://127.0.0.1:{each.laddr.port}" for each in listening):
        with contextlib.suppress(httpx.TransportError):  # vLLM also listens, but not for HTTP
            assert httpx.get(f"{url}/ready", timeout=60).status_code == 200
            assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
            answers += 1
    assert answers == 3


def test_requests_per_minute_are_limited(operated_server: OperatedServer) -> None:
    with operated_server.client("dave") as http:
        answers = [http.get("/v1/models") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
        sdk = OpenAI(base_url=operated_server.server.v1, api_key=operated_server.keys["dave"], max_retries=0)
        with pytest.raises(RateLimitError):
            sdk.models.list()


def test_tokens_per_minute_are_limited(operated_server: OperatedServer) -> None:
    """An image takes most of the minute's tokens, and the tokens of the answer count, too."""
    with operated_server.client("erin") as http:
        first = http.post(CHAT, json=body(image(GRID), "Describe this image.", max_tokens=40))
        used = first.json()["usage"]["total_tokens"]
        assert int(first.headers["x-ratelimit-remaining-tokens"]) == 700 - used
        second = http.post(CHAT, json=body(image(GRID), "Describe this image.", max_tokens=40))
        assert second.status_code == 429
        assert int(second.headers["x-ratelimit-remaining-tokens"]) == 700 - used
        never = http.post(CHAT, json=body(*[image(GRID)] * 2, "Describe these images.", max_tokens=40))
        assert (never.status_code, never.headers["x-should-retry"]) == (429, "false")


def test_several_prompts_are_charged_together_or_not_at_all(operated_server: OperatedServer) -> None:
    operated_server.keys["tom"] = keys(operated_server.folder, "new", "tom", "--tokens-per-minute", "100")
    wait_for_status(operated_server, "tom", 200)
    with operated_server.client("tom") as http:
        many: dict[str, Any] = {"model": "llava-demo", "prompt": ["A prompt of some tokens, more than one"] * 20, "max_tokens": 1}
        for _ in range(2):
            refused = http.post("/v1/completions", json=many)
            assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
        assert http.post("/v1/completions", json=many | {"prompt": many["prompt"][:2]}).status_code == 200


def test_moved_usage_log_is_begun_anew(operated_server: OperatedServer) -> None:
    log = operated_server.folder / "usage.jsonl"
    with operated_server.client("alice") as http:
        assert http.post(CHAT, json=body("Hello", max_tokens=1), headers={"x-request-id": "before"}).status_code == 200
        wait_for(lambda: "before" in [line["id"] for line in json_lines(log)])  # the line is written after the response
        before = log.read_text()
        log.rename(log.with_suffix(".1"))
        assert http.post(CHAT, json=body("Hello", max_tokens=1), headers={"x-request-id": "after"}).status_code == 200
        wait_for(lambda: "after" in [line["id"] for line in json_lines(log)])
    assert log.with_suffix(".1").read_text() == before
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == ["after"]


def test_concurrent_requests_of_a_key_are_limited(operated_server: OperatedServer) -> None:
    with operated_server.client("carol") as http, ThreadPoolExecutor(1) as pool:
        long = pool.submit(http.post, CHAT, json=body("Hello", max_tokens=1500, ignore_eos=True))
        wait_for(lambda: operated_server.metric("llava_requests_running") == 1)
        refused = http.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert long.result().status_code == 200
        wait_for(lambda: http.get("/v1/models").status_code == 200)  # the key's slot is free after the response


def test_new_and_revoked_keys_take_effect_without_a_restart(operated_server: OperatedServer) -> None:
    operated_server.keys["frank"] = keys(operated_server.folder, "new", "frank")
    wait_for_status(operated_server, "frank", 200)
    keys(operated_server.folder, "revoke", "frank")
    wait_for_status(operated_server, "frank", 401)
    file = operated_server.folder / "keys.json"
    content = file.read_bytes()
    try:
        file.write_text("{")
        wait_for_status(operated_server, "alice", 503)
        with operated_server.client("alice") as http:
            answer = http.get("/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unreadable")
        assert httpx.get(f"{operated_server.server.url}/v1/models", headers={"key": PLAIN}, timeout=60).status_code == 200
    finally:
        file.write_bytes(content)
        wait_for_status(operated_server, "alice", 200)


def test_usage_and_log_hold_counts_and_no_prompt_or_secret(operated_server: OperatedServer) -> None:
    before = operated_server.metric('llava_key_tokens_total{key="alice",kind="image"}')
    with operated_server.client("alice") as http:
        asked = body(image(GRID), PROMPT, max_tokens=5, stream=True, stream_options={"include_usage": True})
        headers = {"x-request-id": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        assert http.post(CHAT, json=asked, headers=headers).status_code == 200
        assert http.post(CHAT, json=body(PROMPT, seed="x"), headers={"x-request-id": "bad"}).status_code == 400
    wait_for(lambda: {"mine", "bad"} <= {line["id"] for line in operated_server.lines()})  # the lines are written after the responses
    wait_for(lambda: "mine" in {used["id"] for used in operated_server.usage()})
    (line,) = [line for line in operated_server.lines() if line["id"] == "mine"]
    assert {name: line[name] for name in ("key", "model", "image_tokens", "completion_tokens")} == {
        "key": "alice",
        "model": "llava-demo",
        "image_tokens": 576,
        "completion_tokens": 5,
    }
    assert line["images"][0].endswith(" 336x336")
    assert set(line["stages"]) == {"body", "prompt", "images", "decode", "queue", "first_token", "answer"} - (
        {"decode"} if "decode" not in line["stages"] else set()
    )
    (bad,) = [line for line in operated_server.lines() if line["id"] == "bad"]
    assert bad["code"] == "invalid_request_error"
    (used,) = [used for used in operated_server.usage() if used["id"] == "mine"]
    assert (used["key"], used["image_tokens"], used["completion_tokens"], used["status"]) == ("alice", 576, 5, 200)
    assert operated_server.metric('llava_key_tokens_total{key="alice",kind="image"}') == before + 576
    assert operated_server.metric('llava_rejections_total{reason="invalid_request_error"}') >= 1
    written = (
        operated_server.server.log.read_text()
        + (operated_server.folder / "usage.jsonl").read_text()
        + (operated_server.folder / "keys.json").read_text()
    )
    for secret in (PROMPT, PLAIN, *operated_server.keys.values()):
        assert secret not in written


def test_every_stage_is_measured(operated_server: OperatedServer) -> None:
    for stage in ("body", "prompt", "images", "decode", "queue", "first_token", "answer", "total"):
        assert operated_server.metric(f'llava_stage_seconds_count{{stage="{stage}"}}') >= 1
    assert operated_server.metric("llava_inter_token_seconds_count") >= 1
    assert operated_server.metric("llava_engine_up") == 1
    assert operated_server.metric("vllm:prompt_tokens_total") > 0


def test_spans_continue_the_clients_trace(operated_server: OperatedServer) -> None:
    with operated_server.client("alice") as http:
        http.post(CHAT, json=body(image(GRID), "Hello", max_tokens=2), headers={"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"})

    def spans(*, of_request: bool) -> list[Any]:
        ours = [span for span in operated_server.collector.spans if span.trace_id.hex() == "c" * 32]
        return [span for span in ours if (span.parent_span_id.hex() == "d" * 16) == of_request]

    expected = {"body", "prompt", "images", "queue", "answer", "llm_request"}  # the last is vLLM's
    wait_for(lambda: expected <= {span.name for span in spans(of_request=False)} and spans(of_request=True))
    stages = {span.name: span for span in spans(of_request=False)}
    (request,) = spans(of_request=True)
    assert request.name == f"POST {CHAT}"
    for stage in stages.values():
        assert stage.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= stage.start_time_unix_nano + 10_000_000
        assert stage.start_time_unix_nano <= stage.end_time_unix_nano <= request.end_time_unix_nano + 10_000_000


def test_only_configured_origins_get_cors_headers(operated_server: OperatedServer) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = httpx.options(operated_server.server.url + CHAT, headers={"origin": ORIGIN} | asks, timeout=60)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert (
        "access-control-allow-origin"
        not in httpx.options(operated_server.server.url + CHAT, headers={"origin": "https://evil.example"} | asks, timeout=60).headers
    )
    with operated_server.client("alice") as http:
        answer = http.get("/v1/models", headers={"origin": ORIGIN})
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in http.get("/v1/models", headers={"origin": "https://evil.example"}).headers


def test_gateway_exits_with_its_engine_if_so_configured(operated_server: OperatedServer) -> None:
    process = psutil.Process(operated_server.server.process.pid)
    children = process.children(recursive=True)
    (engine,) = [child for child in children if "EngineCore" in child.name()]
    os.kill(engine.pid, signal.SIGKILL)
    assert operated_server.server.process.wait(60) == 1
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert all(line["id"] for line in operated_server.usage())
