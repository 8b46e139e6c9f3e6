"""Each way in which the engine can end a request has one honest form on the wire."""

import json
from pathlib import Path

import httpx
import psutil
import pytest
from asking import body
from conftest import serve
from contract import ContractTransport, check_error, frames

from llava_gateway.chat import Structure
from llava_gateway.engine.vllm.outputs import finish_reason
from llava_gateway.errors import EngineFailed, InvalidRequest, Unavailable

CHAT = "/v1/chat/completions"


def test_the_ends_of_vllm() -> None:
    from vllm.v1.engine import FINISH_REASON_STRINGS

    form = Structure("regex", "a")
    assert finish_reason(None, None) is None
    assert finish_reason("stop", form) == "stop"
    assert finish_reason("length", None) == "length"
    assert finish_reason("repetition", None) == "length"  # cut short: not an answer that came to its end
    with pytest.raises(Unavailable, match="dropped") as dropped:
        finish_reason("abort", None)
    assert (dropped.value.status, dropped.value.code, dropped.value.retry_after) == (503, "engine_abort", 1)
    with pytest.raises(EngineFailed) as failed:
        finish_reason("error", None)
    assert (failed.value.status, failed.value.code, failed.value.retry_after) == (500, "engine_error", 1)
    with pytest.raises(InvalidRequest) as refused:
        finish_reason("error", form)
    assert refused.value.param == form.param
    assert set(FINISH_REASON_STRINGS) == {"stop", "length", "abort", "error", "repetition"}  # a new one needs a form


def test_an_engine_that_dies(tmp_path: Path) -> None:
    """A stream that runs ends with a framed error; whoever comes next is told to come again."""
    with serve(tmp_path) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        (engine,) = (child for child in children if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name())
        asked = body("Hello", stream=True, ignore_eos=True, max_tokens=3900)
        with httpx.stream("POST", server.url + CHAT, json=asked, timeout=60) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            engine.kill()
            text += "".join(pieces)
        *_, error, done = frames(text)
        assert done == "[DONE]"
        check_error(error)
        assert json.loads(error)["error"]["code"] == "engine_dead"
        with httpx.Client(base_url=server.url, transport=ContractTransport(), timeout=60) as http:
            for stream in (False, True):
                refused = http.post(CHAT, json=body("Hello", stream=stream))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_restarting")
                assert int(refused.headers["retry-after"]) > 0
            assert http.get("/ready").status_code == 503
            assert http.get("/health").status_code == 200
        server.process.terminate()
        assert server.process.wait(30) == 0
