"""Each finish reason of vLLM becomes a finish reason or an error of the gateway."""

import pytest

from llava_gateway.engine.vllm.outputs import finish_reason
from llava_gateway.errors import EngineFailed, InvalidRequest, Unavailable
from llava_gateway.types import StructuredOutput


@pytest.mark.slow
def test_each_finish_reason_of_vllm_is_translated() -> None:
    from vllm.v1.engine import FINISH_REASON_STRINGS

    form = StructuredOutput("regex", "a")
    assert finish_reason(None, None) is None
    assert finish_reason("stop", form) == "stop"
    assert finish_reason("length", None) == "length"
    assert finish_reason("repetition", None) == "length"  # such an answer is not complete
    with pytest.raises(Unavailable, match="dropped") as dropped:
        finish_reason("abort", None)
    assert (dropped.value.status, dropped.value.code, dropped.value.retry_after) == (503, "engine_abort", 1)
    with pytest.raises(EngineFailed) as failed:
        finish_reason("error", None)
    assert (failed.value.status, failed.value.code, failed.value.retry_after) == (500, "engine_error", 1)
    with pytest.raises(InvalidRequest) as refused:
        finish_reason("error", form)
    assert refused.value.param == form.param
    assert set(FINISH_REASON_STRINGS) == {"stop", "length", "abort", "error", "repetition"}  # a new reason needs a translation
